"""Decoding with bounded memory: what comes after the prompt is compressed too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import PROMPT, left_padding, random_ids, with_attention
from tape import tapes  # noqa: F401
from tiny_models import tiny_model
from torch import Tensor

from catekv import CateKVModel, methods
from catekv.cache.cache import RaggedCache
from catekv.decode.step import DecodeStep, EagerStep
from catekv.errors import UserError
from catekv.methods.formulas.schedule import RULES
from catekv.prefill import layerwise

BUDGET, EVERY, BUFFER, STEPS = 30, 16, 8, 70
SNAPKV = {"name": "snapkv", "window": 8}


def decoding(**options: Any) -> methods.Method:
    given = {"budget": BUDGET, "every": EVERY, "buffer": BUFFER, "base": SNAPKV, **options}
    return methods.create("decoding", **given)


def prefilled(
    model: Any, method: methods.Method, batch: int
) -> tuple[RaggedCache, Tensor, Tensor | None]:
    cache = RaggedCache(model.config, method, PROMPT)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    ids = random_ids(batch, PROMPT, seed=0)
    return cache, layerwise.prefill(model, ids, cache, mask), mask


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("base", [SNAPKV, "keydiff"], ids=["snapkv", "keydiff"])
def test_recorded_steps_hold_as_much_at_any_length(base: Any, batch: int) -> None:
    """And decode what ordinary forwards decode; a recording serves from one event to the next."""
    model = tiny_model("llama", num_hidden_layers=2)
    cache, logits, mask = prefilled(model, decoding(base=base), batch)
    ordinary = cache.fork()
    eager = EagerStep(model, ordinary, mask)
    step = DecodeStep(model, cache, EVERY, attention_mask=mask)
    expected = logits
    recordings, stored = set(), []
    for index in range(STEPS):
        tokens = expected.argmax(dim=-1, keepdim=True)
        expected, found = eager(tokens), step(tokens)
        assert float((expected - found).abs().max()) <= 2e-5
        for layer, other in zip(cache.lengths(), ordinary.lengths(), strict=True):
            assert torch.equal(layer, other)
            assert int(layer.max()) <= BUDGET + EVERY
        recordings.add(id(step._recording))
        if index >= 2 * EVERY:
            stored.append(cache.stored_bytes())
    assert step.captured
    assert len(recordings) + 1 >= STEPS // EVERY
    assert cache.get_seq_length() == PROMPT + STEPS
    per_token = cache.full_bytes() // (PROMPT + STEPS)
    assert max(stored) - min(stored) <= EVERY * per_token
    assert cache.stored_bytes() < 2 * (BUDGET + EVERY) * per_token


@pytest.mark.parametrize(
    ("method", "longest"),
    [
        (decoding(), 32_768),
        (decoding(base="random_attention", rule="multiple"), 8192),
        (methods.create("r_kv", budget=BUDGET, every=EVERY), 8192),
    ],
    ids=["snapkv", "random", "r_kv"],
)
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_stored_bytes_are_constant_at_any_length(
    method: methods.Method, longest: int, short: bool
) -> None:
    steps = 300 if short else longest
    model = tiny_model("llama", num_hidden_layers=1)
    cache, _, _ = prefilled(model, method, 1)
    step = EagerStep(model, cache)
    stored = []
    for index in range(steps):
        step(torch.tensor([[3 + index % 90]]))
        if index >= 2 * EVERY:
            stored.append(cache.stored_bytes())
    one_buffer = EVERY * cache.full_bytes() // (PROMPT + steps)
    assert max(stored) - min(stored) <= one_buffer
    assert max(stored) < 4 * one_buffer


@pytest.mark.parametrize("rule", RULES)
def test_a_total_is_cut_to_as_its_mean_budget(rule: str) -> None:
    """Events come by what heads are cut to, and not by the option that the total stands for."""
    model = tiny_model("llama", num_hidden_layers=1)
    heads = model.config.num_key_value_heads
    found = []
    for size in ({"budget": BUDGET}, {"budget": 2048, "total": BUDGET * heads}):
        cache, _, _ = prefilled(model, decoding(rule=rule, **size), 1)
        step = EagerStep(model, cache)
        found.append([])
        for index in range(4 * EVERY):
            step(torch.tensor([[3 + index % 90]]))
            found[-1].append(cache.lengths()[0].tolist())
    assert found[0] == found[1]


def test_positions_are_those_of_the_tokens() -> None:
    model = with_attention("llama", "catekv")
    cache, logits, mask = prefilled(model, decoding(base="random_attention"), 3)
    whole, _, _ = prefilled(model, methods.create("full"), 3)
    steps = [EagerStep(model, one, mask) for one in (cache, whole)]
    for index in range(4 * EVERY):
        tokens = torch.full((3, 1), index + 3)
        logits = torch.stack([step(tokens) for step in steps])
    assert float(logits.std()) > 0.1
    layer, other = cache.ragged_layers[0], whole.ragged_layers[0]
    store: Any = layer.store
    # the first layer's keys depend on the token and its position alone
    for b, padding in enumerate(layer.padding_per_sequence()):
        for head in range(store.prefix.kv_heads):
            start, length = store.prefix.host_rows[b * store.prefix.kv_heads + head]
            assert length == BUDGET
            where = store.positions[start : start + length].long()
            assert bool((where.diff() > 0).all())
            end = PROMPT - padding + 4 * EVERY
            assert where[-BUFFER:].tolist() == list(range(end - BUFFER, end))
            prompt = other.prefix.row(b, head)[0]
            every = torch.cat([prompt, other.buffer.views()[0][b, head]])
            torch.testing.assert_close(store.prefix.row(b, head)[0], every[where])


@pytest.mark.parametrize("base", [SNAPKV, "random_attention"], ids=["snapkv", "random"])
def test_turns_are_compressed_and_saved(base: Any, tmp_path: Path) -> None:
    model = CateKVModel(tiny_model("llama"), decoding(base=base))
    prompts = random_ids(2, PROMPT, seed=0).tolist()
    first = model.prefill([prompts[0], prompts[1][5:]])
    turns = random_ids(2, 12, seed=1).tolist()
    context = model.extend(first, [turns[0], turns[1][4:]])
    assert (first.tokens, context.tokens) == (PROMPT, PROMPT + 12)
    assert {int(n) for rows in context.lengths() for n in rows.flatten()} == {BUDGET + 12}
    asked = model.generate_ids([[5], [6, 7]], context, 40, [])
    context.save(tmp_path / "turns")
    loaded = model.load_context(tmp_path / "turns")
    assert loaded.stored_bytes() <= context.stored_bytes()
    assert model.generate_ids([[5], [6, 7]], loaded, 40, []).rows == asked.rows
    context.compress()
    assert {int(n) for rows in context.lengths() for n in rows.flatten()} == {BUDGET}
    assert context.tokens == PROMPT + 12
    answer = model.generate_ids([[5], [6, 7]], context, 40, [])
    assert answer.rows != asked.rows
    # a turn fed in one piece, or in two, is the same
    halves = model.extend(model.extend(first, [turns[0][:6], turns[1][4:10]]),
                          [turns[0][6:], turns[1][10:]])  # fmt: skip
    halves.compress()
    assert model.generate_ids([[5], [6, 7]], halves, 40, []).rows == answer.rows


@pytest.mark.parametrize("base", [SNAPKV, "keydiff"], ids=["snapkv", "keydiff"])
def test_a_choice_is_made_anew_without_a_tail_too(base: Any) -> None:
    """Tokens that were taken over and are not due yet are no tail and still too many."""
    method = decoding(base=base, rule="slack")
    model = CateKVModel(tiny_model("llama"), method)
    prompts = random_ids(2, BUDGET - 6, seed=0).tolist()
    context = model.extend(model.prefill(prompts), random_ids(2, EVERY, seed=1))
    assert context.cache.tail_length == 0
    assert {int(n) for rows in context.lengths() for n in rows.flatten()} == {BUDGET - 6 + EVERY}
    later = model.extend(context, [[5], [6]])
    context.compress()
    assert {int(n) for rows in context.lengths() for n in rows.flatten()} == {BUDGET}
    again = context.lengths()
    context.compress()
    assert all(map(torch.equal, again, context.lengths()))
    assert {int(n) for rows in later.lengths() for n in rows.flatten()} == {BUDGET - 5 + EVERY}
    assert len(model.generate_ids([[5], [6]], context, 3 * EVERY, []).rows[0]) == 3 * EVERY


def test_other_methods_leave_what_follows_a_prompt() -> None:
    model = CateKVModel(tiny_model("llama"), "full")
    prompt, turn = random_ids(2, PROMPT, seed=0).tolist()
    context = model.extend(model.prefill(prompt), turn[:9])
    whole = model.prefill(prompt + turn[:9])
    assert (
        model.generate_ids([], context, 20, []).rows == model.generate_ids([], whole, 20, []).rows
    )
    with pytest.raises(UserError, match="'full' does not compress what comes after a prompt"):
        context.compress()


def test_a_protected_prompt_stays_and_must_fit() -> None:
    model = CateKVModel(tiny_model("llama"))
    method = decoding(base="random_attention", protect_prompt=True, rule="slack")
    context = model.prefill(random_ids(1, 20, seed=0), method=method)
    fork = context.fork()
    step = EagerStep(model.model, fork.cache)
    for token in range(3 * EVERY):
        step(torch.tensor([[token + 1]]))
    for layer in fork.cache.ragged_layers:
        store: Any = layer.store
        for start, length in store.prefix.host_rows:
            assert store.positions[start : start + length].tolist()[:20] == list(range(20))
            assert length == BUDGET
    with pytest.raises(UserError, match=r"budget of 30 entries .* 25 tokens and the newest 8.*33"):
        model.prefill(random_ids(1, 25, seed=0), method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "h2o"}, "gives tokens no score"),
        ({"base": "expected_attention"}, "scores by query_moments, which is recorded of a prompt"),
        ({"budget": 5}, "budget 5 does not hold the newest 8 tokens"),
        ({"base": "snapkv", "budget": 12}, "budget 12 does not hold the newest 32 tokens"),
        ({"rule": "never"}, "unknown rule 'never'"),
        ({"base": "tova", "budgets": "pyramid"}, "needs the same entries in every head"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        decoding(**options)
    assert "\n" not in str(error.value)
