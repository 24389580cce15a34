"""Methods at equal memory keep exactly as many entries."""

from __future__ import annotations

import pytest
import torch

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.equal_memory import (
    mean_kept_tokens,
    total_kept,
    with_equal_memory,
    with_total,
)
from catekv.methods.head_mask import HeadMask

SHAPE = ModelShape(3, 4, 2, 8)
MASK = HeadMask(torch.tensor([[0, 1], [0, 0], [1, 1]]), {"ratio": 0.4})
CATEKV = {
    "head_mask": MASK,
    "budget": 40,
    "window": 6,
    "chunk_size": 4,
    "init_tokens": 8,
    "recent_tokens": 16,
    "guard_tokens": 8,
}
SCORES = [[0.5, 0.1], [0.2, 0.9], [0.0, 0.3]]
EXACT = [
    ("snapkv", {"window": 6}),
    ("snapkv", {"window": 6, "budgets": {"kind": "cokv", "scores": SCORES, "alpha": 2}}),
    ("snapkv", {"window": 6, "budgets": [[1, 2], [3, 0], [5, 8]]}),
    ("streaming_llm", {}),
    ("streaming_llm", {"budgets": {"kind": "headkv", "scores": SCORES}}),
    ("sliding_window", {}),
    ("pyramidkv", {}),
    ("adakv", {"window": 6}),
    ("adakv", {"window": 6, "budgets": "pyramid"}),
    ("adakv", {"window": 6, "safeguard": "reserved", "floor": 0.5}),
    ("headkv", {"scores": SCORES}),
    ("cokv", {"scores": SCORES}),
    ("duo_attention", {"pattern": SCORES, "sinks": 4, "recent": 8}),
]


def select_all(method: methods.Method, tokens: int) -> list[methods.Selection]:
    generator = torch.Generator().manual_seed(tokens)
    found = []
    for layer in range(SHAPE.layers):
        queries = torch.randn(1, 4, tokens, 8, generator=generator)
        keys, values = torch.randn(2, 1, 2, tokens, 8, generator=generator)
        found.append(method.select(queries, keys, values, layer=layer, num_layers=SHAPE.layers))
    return found


@pytest.mark.parametrize(("name", "options"), EXACT)
@pytest.mark.parametrize("tokens", [60, 97, 301])
def test_equal_memory_is_exact(name: str, options: dict, tokens: int) -> None:
    like = methods.create("catekv", **CATEKV)
    asked = total_kept(like, tokens, SHAPE)
    method = with_equal_memory(name, like, tokens, SHAPE, **options)
    kept = [int(selection.budgets.sum()) for selection in select_all(method, tokens)]
    assert sum(kept) == asked
    assert total_kept(method, tokens, SHAPE) == asked
    assert mean_kept_tokens(method, tokens, SHAPE) == asked / 6


@pytest.mark.parametrize(("name", "options"), EXACT)
@pytest.mark.parametrize("total", [100, 101, 577, 582, 700])
def test_any_total_is_met_and_never_exceeds_the_prompt(
    name: str, options: dict, total: int
) -> None:
    method = with_total(methods.create(name, **options), total, 97, SHAPE)
    kept = [selection.budgets for selection in select_all(method, 97)]
    assert int(torch.stack(kept).sum()) == min(total, 97 * 6)


def test_a_method_without_a_total_gets_the_largest_budget_that_fits() -> None:
    mask = HeadMask(torch.zeros(3, 2), {"ratio": 0.4})
    method = methods.create("catekv", **{**CATEKV, "head_mask": mask})
    fitted = with_total(method, 400, 200, SHAPE)
    kept = total_kept(fitted, 200, SHAPE)
    assert 400 - 6 * 4 < kept <= 400
    with pytest.raises(UserError, match="as few as 100 entries of 200 tokens in 6 heads"):
        with_total(method, 100, 200, SHAPE)


def test_full_attention_is_left_as_it_is() -> None:
    full = methods.create("full")
    assert with_total(full, 12, 100, SHAPE) == full


def test_equal_memory_refuses_what_it_cannot_give() -> None:
    like = methods.create("streaming_llm", budget=8)
    with pytest.raises(UserError, match=r"total of 48 tokens does not hold .* lower window"):
        with_equal_memory("snapkv", like, 100, SHAPE)
    with pytest.raises(UserError, match=r"48 tokens does not hold .* lower sinks"):
        with_equal_memory("streaming_llm", like, 100, SHAPE, sinks=9)
    with pytest.raises(UserError, match="does not hold the 20 sinks of 6 heads"):
        with_equal_memory("duo_attention", like, 100, SHAPE, pattern=SCORES, sinks=20)
