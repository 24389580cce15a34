"""Every method in every setting: batches with padding, groups of query heads, chunks, turns.

What to run is said by each method's ``example``, so that a new one is here because its file is.
Settings are paired so that every two values of different dimensions meet in one of them. Each run
has two turns: its first part is the run of one turn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import entries_reference
import pytest
import torch
from scenarios import largest_difference, left_padding, random_ids
from tiny_models import tiny_model
from torch import Tensor
from transformers import DynamicCache

from catekv import CateKVModel, methods
from catekv.errors import UserError
from catekv.methods import Method, ModelShape
from catekv.methods.example import Example, head_numbers
from catekv.methods.head_mask import HeadMask
from catekv.methods.per_sequence import NotTogetherError
from catekv.models.compat import set_attention
from catekv.prefill import layerwise

LAYERS, QUERY_HEADS, HIDDEN, PROMPT = 2, 4, 32, 48
TOLERANCE = 2e-5
#: KV heads of the grouped, the ungrouped and the single-headed model
GROUPINGS = {"grouped": 2, "ungrouped": 4, "one-head": 1}
#: grouping, batch, chunk_size; batches of 3 are padded
Setting = tuple[str, int, int | None]
SETTINGS: list[Setting] = [
    ("grouped", 1, None),
    ("grouped", 3, 13),
    ("ungrouped", 1, 13),
    ("ungrouped", 3, None),
    ("one-head", 1, None),
    ("one-head", 3, 13),
]
EDGES = {"init_tokens": 2, "recent_tokens": 4}


def head_mask(shape: ModelShape, ratio: float) -> dict[str, Any]:
    mask = torch.zeros(shape.layers, shape.kv_heads)
    mask[0, 0] = 1
    return {"head_mask": HeadMask(torch.ones_like(mask) if ratio == 1.0 else mask)}


def catekv(shape: ModelShape) -> dict[str, Any]:
    small = {"budget": 20, "window": 4, "chunk_size": 4, "guard_tokens": 4, **EDGES}
    return {**small, **head_mask(shape, 0.4)}


WINDOWED = {"window": 4, "kernel": 3}
ATSKV = {
    "untrained": True,
    "predictor_width": 5,
    "feature_dim": 16,
    "lsh_bits": 2,
    "fetch": 3,
    "update_every": 2,
    **EDGES,
}


def windowed(**options: Any) -> Example:
    return Example({"budget": 10, **WINDOWED, **options})


def reading(read: str, original: bool = True, **options: Any) -> Example:
    return Example(
        lambda shape: {**catekv(shape), "read": read, **options},
        lambda shape: {**catekv(shape), **head_mask(shape, 1.0), "read": read, **options,
                       "budget": 999},
        original=original,
        exact=False,
    )  # fmt: skip


def gated(**options: Any) -> Example:
    return Example(
        lambda shape: {"pattern": head_numbers(shape), "sinks": 2, "recent": 8, **options},
        lambda shape: {"pattern": head_numbers(shape), "sinks": 2, "recent": 999, **options},
    )


def examples() -> dict[str, Example]:
    """What every method says of itself, by the method's name."""
    said = {name: methods.method_class(name).example for name in methods.available()}
    return {name: example for name, example in said.items() if example is not None}


#: further ways to run some of the methods, as method/variant
VARIANTS: dict[str, Example] = {
    "streaming_llm/rolling": Example({"budget": 12, "sinks": 2, "rolling": True}),
    "streaming_llm/reposition": Example(
        {"budget": 12, "sinks": 2, "rolling": True, "reposition": True}, original=False
    ),
    "snapkv/offload": windowed(store="offload"),
    "adakv/pyramid": windowed(budgets="pyramid"),
    "duo_attention/rolling": gated(rolling=True),
    "catekv/quest": reading("quest"),
    "catekv/shadowkv": reading("shadowkv", original=False, rank=8, outliers=1, local=1),
    "kvzap/threshold": Example(
        {"untrained": True, "window": 4, "threshold": 0.3, "floor": 2},
        {"untrained": True, "threshold": -99.0},
        exact=False,
    ),
    "kvzip/plus": Example({"budget": 12, "chunk": 17, "plus": True, "level": "head"}),
    "kvzip/strict": Example(
        {"budget": 12, "chunk": 30, "sinks": 0, "strict": True, "level": "layer"},
        {"budget": 999},
        exact=False,
    ),
    "keydiff/at-once": Example({"budget": 12, "block": 0}),
    "decoding/random": Example(
        {"base": "random_attention", "budget": 12, "every": 3, "buffer": 2, "rule": "multiple"}
    ),
    "decoding/pyramid": Example(
        {
            "base": {"name": "snapkv", **WINDOWED},
            "budget": 16,
            "budgets": "pyramid",
            "every": 2,
            "buffer": 1,
            "rule": "position",
        }
    ),
    "h2o/append": Example({"budget": 12, "decode": False}),
    "simcalkv/logit": Example(
        {"ratio": 0.6, "calibration": "logit", "key_mean": "uniform"},
        {"ratio": 0.0},
        original=False,
    ),
    "simcalkv/remerge": Example(
        {"ratio": 0.6, "calibration": "logit", "remerge_every": 3},
        {"ratio": 0.0, "remerge_every": 3},
        original=False,
    ),
    "cam/h2o": Example(
        {"budget": 12, "rule": "h2o", "expected": True}, {"budget": 999}, original=False
    ),
    "pyramidinfer_kv/blocks": Example(
        {"least_ratio": 0.3, "min_context": 4, "sinks": 2, "block": 3, "block_share": 0.7},
        {"least_ratio": 1.0, "decode": False},
        exact=False,
        layers=3,
    ),
    "rocketkv/multi_turn": Example({"budget": 12, "multi_turn": True, **WINDOWED}, exact=False),
    "atskv/top": Example(
        {"selection": "top", "budget": 12, **ATSKV}, {"budget": 999, **ATSKV}, exact=False
    ),
}
#: method, or method/variant
CASES = {**examples(), **VARIANTS}


def cases(settings: list[Setting], of_variants: list[Setting]) -> list[tuple[Any, ...]]:
    """Every method in every setting, and its variants, which share most of its code, in some."""
    return [
        (name, *setting)
        for name in sorted(CASES)
        for setting in (of_variants if name in VARIANTS else settings)
    ]


@functools.cache
def model_of(grouping: str, layers: int) -> Any:
    entries_reference.register()
    return tiny_model(
        "llama",
        num_hidden_layers=layers,
        num_attention_heads=QUERY_HEADS,
        num_key_value_heads=GROUPINGS[grouping],
        hidden_size=HIDDEN,
        intermediate_size=32,
    )


@functools.cache
def forwards(batch: int) -> list[dict[str, Tensor]]:
    """Inputs of every forward: the prompt, two steps, a second turn (padded too), two steps."""
    widths, found = [PROMPT, 1, 1, 6, 1, 1], []
    seen = torch.zeros(batch, 0, dtype=torch.long)
    for index, width in enumerate(widths):
        ids = random_ids(batch, width, seed=index)
        if batch == 1:
            found.append({"input_ids": ids})
            continue
        new = torch.ones_like(ids)
        if index == 0:
            new = left_padding(batch, width)
        elif width > 1:
            new[0, :3] = 0
        seen = torch.cat([seen, new], dim=1)
        positions = layerwise.positions_of(seen)[:, -width:]
        found.append({"input_ids": ids, "attention_mask": seen, "position_ids": positions})
    return found


def prompt_mask(batch: int) -> Tensor | None:
    return forwards(batch)[0].get("attention_mask")


@functools.cache
def stock(grouping: str, batch: int, layers: int) -> list[Tensor]:
    """Logits of the ordinary model and cache."""
    model = model_of(grouping, layers)
    set_attention(model, "sdpa")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        return [
            model(past_key_values=cache, use_cache=True, **inputs).logits[:, -1]
            for inputs in forwards(batch)
        ]


def wrapped(grouping: str, layers: int) -> CateKVModel:
    # the reference runs the same model with an attention of its own
    return CateKVModel(model_of(grouping, layers), attention_base="sdpa")


@torch.no_grad()
def compressed(
    grouping: str, layers: int, batch: int, chunk_size: int | None, method: Method
) -> tuple[list[Tensor], Any]:
    """Logits of the same forwards with a compressed cache, and the cache as the prompt left it."""
    model = wrapped(grouping, layers)
    prompt, *rest = forwards(batch)
    context = model.prefill(
        prompt["input_ids"], chunk_size, method, attention_mask=prompt_mask(batch)
    )
    cache = context.fork().cache
    logits = [context.last_logits]
    for inputs in rest:
        logits.append(model.model(past_key_values=cache, use_cache=True, **inputs).logits[:, -1])
    return logits, context.cache


def tokens_of(batch: int) -> list[int]:
    mask = prompt_mask(batch)
    return [PROMPT] * batch if mask is None else mask.sum(dim=-1).tolist()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    assert not entries_reference.CURRENT


def shape_of(name: str, grouping: str) -> ModelShape:
    heads = GROUPINGS[grouping]
    return ModelShape(CASES[name].layers, QUERY_HEADS, heads, HIDDEN // QUERY_HEADS)


def made(name: str, kind: str, grouping: str, **more: Any) -> Method:
    options = CASES[name].options(kind, shape_of(name, grouping))
    method = methods.create(name.split("/")[0], **{**options, **more})
    method.validate(shape_of(name, grouping))
    return method


def test_every_method_shows_what_it_does() -> None:
    silent = {
        name
        for name in methods.available()
        if name not in examples() and methods.method_class(name).__module__.startswith("catekv.")
    }
    # one method only says why it cannot be had
    assert silent == {"pyramidinfer"}, "add example = Example({...}) to the class of the method"


def test_every_two_values_of_the_dimensions_meet() -> None:
    for first, second in ((0, 1), (0, 2), (1, 2)):
        met = {(setting[first], setting[second]) for setting in SETTINGS}
        values = [{setting[i] for setting in SETTINGS} for i in (first, second)]
        assert len(met) == len(values[0]) * len(values[1])


@pytest.mark.parametrize(
    ("name", "grouping", "batch", "chunk_size"), cases(SETTINGS, of_variants=SETTINGS[1:4:2])
)
def test_a_finite_budget_equals_dense_attention_over_the_same_entries(
    name: str, grouping: str, batch: int, chunk_size: int | None
) -> None:
    method = made(name, "small", grouping)
    actual, _ = compressed(grouping, CASES[name].layers, batch, chunk_size, method)
    model = model_of(grouping, CASES[name].layers)
    set_attention(model, entries_reference.NAME)
    reference = entries_reference.ReferenceCache(
        model, method, prompt_mask(batch), CASES[name].original
    )
    with torch.no_grad():
        expected = entries_reference.run(model, reference, forwards(batch))
    assert largest_difference(actual, expected) <= TOLERANCE
    if name != "full":
        changed = max(
            float((a - b).abs().max())
            for a, b in zip(actual[1:], stock(grouping, batch, CASES[name].layers)[1:], strict=True)
        )
        assert changed > 1e-3, "the method left everything as it was"


@pytest.mark.parametrize(
    ("name", "grouping", "batch", "chunk_size"),
    cases([SETTINGS[2], SETTINGS[5]], of_variants=SETTINGS[3:4]),
)
def test_an_infinite_budget_equals_the_stock_model(
    name: str, grouping: str, batch: int, chunk_size: int | None
) -> None:
    method = made(name, "whole", grouping)
    actual, cache = compressed(grouping, CASES[name].layers, batch, chunk_size, method)
    assert largest_difference(actual, stock(grouping, batch, CASES[name].layers)) <= TOLERANCE
    for lengths in cache.lengths():
        assert lengths.tolist() == [[count] * GROUPINGS[grouping] for count in tokens_of(batch)]


@pytest.mark.parametrize(("grouping", "batch", "chunk_size"), SETTINGS[1:4])
@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if case.exact))
def test_recommended_budgets_hold_exactly_what_was_asked(
    name: str, grouping: str, batch: int, chunk_size: int | None
) -> None:
    shape = shape_of(name, grouping)
    total = shape.layers * shape.kv_heads * 20
    method = made(name, "small", grouping, preset="recommended")
    method = method.with_total(total, min(tokens_of(batch)), shape)
    model = wrapped(grouping, CASES[name].layers)
    context = model.prefill(
        forwards(batch)[0]["input_ids"], chunk_size, method, attention_mask=prompt_mask(batch)
    )
    stored = torch.stack(context.cache.lengths()).sum(dim=(0, 2))
    assert stored.tolist() == [total] * batch


#: Methods that cannot be told what share to keep, and what they say.
WITHOUT_SHARE = {
    "full": "keeps everything; leave keep=0.6 out",
    "pyramidinfer_kv": "keep=0.6 of 48 tokens: method 'pyramidinfer_kv' has no budget to set",
    "rocketkv/multi_turn": "keep=0.6 of 48 tokens: no budget makes method 'rocketkv' keep as few",
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_share_is_kept_of_every_row(name: str) -> None:
    method = made(name, "small", "grouped", preset="recommended")
    shape, model = shape_of(name, "grouped"), wrapped("grouped", CASES[name].layers)
    heads = shape.layers * shape.kv_heads

    def kept(batch: int) -> list[int]:
        context = model.prefill(
            forwards(batch)[0]["input_ids"],
            None,
            replace(method, keep=0.6),
            attention_mask=prompt_mask(batch),
        )
        return torch.stack(context.cache.lengths()).sum(dim=(0, 2)).tolist()

    refusal = next((WITHOUT_SHARE[one] for one in WITHOUT_SHARE if name.startswith(one)), None)
    if refusal is not None:
        with pytest.raises(UserError, match=refusal):
            kept(3)
        return
    batch = 3
    try:
        stored = kept(batch)
    except NotTogetherError:
        # goes on while decoding, with one budget for all rows
        batch = 1
        stored = kept(batch)
    if method.effect != "frees":
        assert stored == [tokens * heads for tokens in tokens_of(batch)]
        return
    # at most so much is missing where all heads keep alike, or whole chunks
    exact = CASES[name].exact and not name.startswith("atskv")
    step = getattr(method, "chunk_size", 1) if name.startswith("catekv") else 1
    for found, tokens in zip(stored, tokens_of(batch), strict=True):
        assert 0 <= round(0.6 * tokens * heads) - found < (1 if exact else heads * step)


@pytest.mark.parametrize("name", sorted(CASES))
def test_rows_with_questions_of_unequal_length_are_answered_as_alone(name: str) -> None:
    """Of one token and of several, of a padded batch and of a part of it."""
    model, method = wrapped("grouped", CASES[name].layers), made(name, "small", "grouped")
    texts = random_ids(3, 60, seed=1).tolist()
    contexts = [texts[0][:37], texts[1], texts[2][:52]]
    questions = [[5], [5, 6, 7], [8]]
    alone = [
        model.generate_ids([question], model.prefill([context], method=method), 6, []).rows[0]
        for context, question in zip(contexts, questions, strict=True)
    ]
    context = model.prefill(contexts, method=method)
    assert model.generate_ids(questions, context, 6, []).rows == alone
    # without the longest row, and in another order
    part = context.rows([2, 0])
    assert model.generate_ids([questions[2], questions[0]], part, 6, []).rows == [
        alone[2],
        alone[0],
    ]


@pytest.mark.parametrize("name", sorted(CASES))
def test_turns_of_unequal_length_are_read_as_alone(name: str) -> None:
    """What a method does while decoding may depend on a row's own tokens only."""
    model, method = wrapped("grouped", CASES[name].layers), made(name, "small", "grouped")
    texts = random_ids(3, 60, seed=1).tolist()
    contexts = [texts[0][:57], texts[1][:51], texts[2]]
    together = model.prefill(contexts, method=method)
    alone = [model.prefill([context], method=method) for context in contexts]
    turns = [[5, 2, 3], [7, 5, 4], [3, 6, 2], [1, 1, 1], [5, 4, 5], [1, 1, 1], [1, 1, 1]]
    for number, lengths in enumerate(turns):
        if together.cache.padded_from == math.inf:
            lengths = [lengths[0]] * 3
        rows = random_ids(3, 7, seed=number).tolist()
        turn = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        together = model.extend(together, turn)
        alone = [model.extend(one, [row]) for one, row in zip(alone, turn, strict=True)]
        expected = torch.cat([one.last_logits for one in alone])
        assert float((together.last_logits - expected).abs().max()) <= 5e-5
