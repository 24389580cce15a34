"""Every method chooses the same on a part of the KV heads as among all of them, or says that it
cannot: tensor-parallel processes rely on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from required_options import required_options

from catekv import kernels, methods
from catekv.errors import NeedsAllHeadsError
from catekv.methods.base import Method, Observed, Selection
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.head_mask import HeadMask
from catekv.models.rotation import Rotation
from catekv.models.shape import ModelShape

LAYERS, HEADS, GROUP, TOKENS, DIM = 2, 4, 2, 160, 16
HALVES = (slice(0, 2), slice(2, 4))
MASK = HeadMask.random((LAYERS, HEADS), 0.5, seed=0)
#: sizes that leave something to choose
OPTIONS: dict[str, dict[str, Any]] = {
    "catekv": {
        "head_mask": MASK, "budget": 40, "init_tokens": 4, "recent_tokens": 8, "guard_tokens": 4,
        "window": 8,
    },
    "duo_attention": {"pattern": MASK, "sinks": 4, "recent": 16},
}  # fmt: skip
#: removes tokens from the hidden states, which a cache cannot do; refused on construction
NO_CACHE = {"pyramidinfer"}
COMPARES = {
    "adakv", "atskv", "atskv_dynamic_kv", "atskv_rocket_kv", "cam", "chunkkv", "cokv", "curvekv",
    "defensivekv", "dynamickv", "fast_kvzip", "headkv", "kvzap", "kvzip", "pyramidinfer_kv",
    "random_attention", "simcalkv_cam", "tova",
}  # fmt: skip
NAMES = [name for name in methods.available() if name not in NO_CACHE]


def method(name: str) -> Method:
    known = {item.name for item in dataclasses.fields(methods.method_class(name))}
    common = {"budget": 40, "window": 8, "protect_prompt": False}
    given = required_options(name, ModelShape(LAYERS, HEADS * GROUP, HEADS, DIM))
    given |= {key: common[key] for key in common if key in known}
    return methods.create(name, **OPTIONS.get(name, given))


def observed(method: Method, heads: slice) -> list[Observed]:
    """All layers of a prompt, with some of the heads."""
    generator = torch.Generator().manual_seed(0)

    def random(*extents: int) -> torch.Tensor:
        return torch.randn(*extents, generator=generator)

    queries = random(LAYERS, 1, HEADS * GROUP, TOKENS, DIM)
    keys, values = random(LAYERS, 1, HEADS, TOKENS, DIM), random(LAYERS, 1, HEADS, TOKENS, DIM)
    hidden = random(1, TOKENS, 32)
    projection = random(HEADS * GROUP, DIM, 32)[heads.start * GROUP : heads.stop * GROUP]
    repeated = random(LAYERS, 1, HEADS, TOKENS)
    needs, rotation = method.needs, Rotation(0.1 ** torch.arange(DIM // 2))
    found = []
    for layer in range(LAYERS):
        own = queries[layer, :, heads.start * GROUP : heads.stop * GROUP]
        sums = kernels.column_sums(own, keys[layer, :, heads], DIM**-0.5, None)
        moments = QueryMoments.none_yet(own)
        moments.add(own, rotation)
        found.append(
            Observed(
                own[:, :, max(0, TOKENS - needs.window) :] if needs.window else own[:, :, :0],
                keys[layer, :, heads],
                values[layer, :, heads],
                DIM**-0.5,
                layer,
                LAYERS,
                column_sums=sums if needs.column_sums else None,
                hidden_states=hidden if needs.hidden_states else None,
                rotation=rotation if needs.rotation else None,
                output_projection=projection if needs.output_projection else None,
                query_moments=moments if needs.query_moments else None,
                repeat_scores=dict.fromkeys(needs.repeats, repeated[layer, :, heads]),
                attention_inputs=hidden if needs.attention_inputs else None,
            )
        )
    return found


def selections(method: Method, heads: slice) -> list[Selection]:
    layers = observed(method, heads)
    if method.needs.all_layers:
        return method.select_padded(layers, None)
    return [method.select_padded([layer], None)[0] for layer in layers]


def entries(selection: Selection) -> list[torch.Tensor]:
    """Keys and values of every row."""
    return [
        torch.cat([keys, values], dim=-1)
        for keys, values in zip(selection.keys[0], selection.values[0], strict=True)
    ]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COMPARES])
def test_a_part_of_the_heads_keeps_what_it_would_among_all(name: str) -> None:
    chosen = method(name)
    whole = selections(chosen, slice(0, HEADS))
    parts = [selections(chosen.for_heads(half), half) for half in HALVES]
    for layer in range(LAYERS):
        joined = [row for part in parts for row in entries(part[layer])]
        for row, wanted in zip(joined, entries(whole[layer]), strict=True):
            torch.testing.assert_close(row, wanted)


@pytest.mark.parametrize("name", sorted(COMPARES))
def test_methods_that_compare_heads_say_so(name: str) -> None:
    with pytest.raises(NeedsAllHeadsError, match="tensor-parallel"):
        method(name).for_heads(HALVES[0])


def test_a_base_that_compares_heads_is_not_asked_about_a_part() -> None:
    with pytest.raises(NeedsAllHeadsError, match="adakv compares all heads"):
        methods.create("criticalkv", base="adakv").for_heads(HALVES[0])


@pytest.mark.parametrize("name", ["snapkv", "h2o", "streaming_llm", "simcalkv", "duo_attention"])
def test_one_total_for_all_heads_is_a_comparison(name: str) -> None:
    options = {**OPTIONS.get(name, {}), "total": 400}
    with pytest.raises(NeedsAllHeadsError, match="a total is split over all heads"):
        methods.create(name, **options).for_heads(HALVES[0])


@pytest.mark.parametrize("name", ["cam", "simcalkv_cam"])
def test_an_expected_merge_needs_no_draws_and_so_no_comparison(name: str) -> None:
    chosen = methods.create(name, expected=True)
    assert chosen.for_heads(HALVES[0]) is not None
