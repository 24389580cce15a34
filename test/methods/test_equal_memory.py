"""Methods at equal memory keep exactly as many entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.equal_memory import (
    keeps_everything,
    mean_read_tokens,
    with_equal_memory,
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
    asked = like.total_kept(tokens, SHAPE)
    method = with_equal_memory(name, like, tokens, SHAPE, **options)
    kept = [int(selection.budgets.sum()) for selection in select_all(method, tokens)]
    assert sum(kept) == asked
    assert method.total_kept(tokens, SHAPE) == asked
    assert mean_read_tokens(method, tokens, SHAPE) == asked / 6


@pytest.mark.parametrize(("name", "options"), EXACT)
@pytest.mark.parametrize("total", [100, 101, 577, 582, 700])
def test_any_total_is_met_and_never_exceeds_the_prompt(
    name: str, options: dict, total: int
) -> None:
    method = methods.create(name, **options).with_total(total, 97, SHAPE)
    kept = [selection.budgets for selection in select_all(method, 97)]
    assert int(torch.stack(kept).sum()) == min(total, 97 * 6)


def test_a_method_without_a_total_gets_the_largest_budget_that_fits() -> None:
    mask = HeadMask(torch.zeros(3, 2), {"ratio": 0.4})
    method = methods.create("catekv", **{**CATEKV, "head_mask": mask})
    fitted = method.with_total(400, 200, SHAPE)
    kept = fitted.total_kept(200, SHAPE)
    assert 400 - 6 * 4 < kept <= 400
    with pytest.raises(UserError, match="as few as 100 entries of 200 tokens in 6 heads"):
        method.with_total(100, 200, SHAPE)


@pytest.mark.parametrize("retention", [1.0, 0.2])
@pytest.mark.parametrize("total", [290, 301, 400, 577, 582, 700])
def test_as_many_heads_are_adaptive_as_fit(retention: float, total: int) -> None:
    order = [3, 0, 5, 1, 4, 2]
    method = methods.create("catekv", **{**CATEKV, "retention": retention})
    parts = [HeadMask.from_order(order, count, 3, 2, {"ratio": 0.4}) for count in range(7)]
    kept = [replace(method, head_mask=part).total_kept(97, SHAPE) for part in parts]
    fitting = [count for count in range(7) if kept[count] <= total]
    found = replace(method, head_mask=parts[2])
    assert int(found.with_total(total, 97, SHAPE).mask.adaptive.sum()) == max(fitting, default=0)


def test_a_share_is_worked_out_once_for_every_length() -> None:
    method = methods.create("adakv", keep=0.5)
    assert method.for_prompt(97, SHAPE) is method.for_prompt(97, SHAPE)
    assert method.for_prompt(97, SHAPE) != method.for_prompt(98, SHAPE)
    for tokens in range(200, 400):
        method.for_prompt(tokens, SHAPE)
    assert len(vars(method)["_for_prompts"]) <= 64
    larger = ModelShape(4, 4, 2, 8)
    assert method.for_prompt(97, larger).total_kept(97, larger) == 97 * 4
    assert replace(method, keep=0.6).for_prompt(97, SHAPE).total_kept(97, SHAPE) == 349


def test_full_attention_is_left_as_it_is() -> None:
    full = methods.create("full")
    assert full.with_total(12, 100, SHAPE) == full


def test_equal_memory_refuses_what_it_cannot_give() -> None:
    like = methods.create("streaming_llm", budget=8)
    with pytest.raises(UserError, match=r"total of 48 tokens does not hold .* lower window"):
        with_equal_memory("snapkv", like, 100, SHAPE)
    with pytest.raises(UserError, match=r"48 tokens does not hold .* lower sinks"):
        with_equal_memory("streaming_llm", like, 100, SHAPE, sinks=9)
    with pytest.raises(UserError, match="does not hold the 20 sinks of 6 heads"):
        with_equal_memory("duo_attention", like, 100, SHAPE, pattern=SCORES, sinks=20)


def test_a_share_is_said_once() -> None:
    assert methods.create("snapkv", keep=0.25).total_kept(400, SHAPE) == 600
    assert "keep" not in methods.create("snapkv").to_dict()
    made = methods.create("snapkv", keep=0.25)
    assert methods.from_dict(made.to_dict()) == made
    for option in ({"budget": 64}, {"total": 64}):
        with pytest.raises(UserError, match=r"keep and .* both say how much is kept"):
            methods.create("snapkv", keep=0.25, **option)
    for wrong in (0, -0.1, 1.01, float("nan"), True, "half"):
        with pytest.raises(UserError, match="keep"):
            methods.create("snapkv", keep=wrong)


def test_catekv_at_a_share_takes_fewer_heads_of_its_order() -> None:
    mask = HeadMask.from_order((3, 0, 5, 1, 2, 4), 6, 3, 2, {"ratio": 1.0})
    method = methods.create("catekv", **{**CATEKV, "head_mask": mask}, keep=0.5)
    fitted = method.for_prompt(400, SHAPE)
    adaptive = fitted.mask.adaptive.flatten().nonzero().flatten().tolist()
    assert adaptive == sorted((3, 0, 5, 1, 2, 4)[: len(adaptive)])
    assert 0 < len(adaptive) < 3
    kept = fitted.total_kept(400, SHAPE)
    assert 1200 - 6 * fitted.chunk_size < kept <= 1200


@pytest.mark.parametrize(
    ("name", "options", "tokens"),
    [
        ("quest", {"budget": 64, "full_layers": 1}, 64),
        # two chunks beside the outliers', the local ones and the rest
        ("shadowkv", {"budget": 16, "outliers": 2, "local": 1}, 16 + 16 + 8),
        ("snapkv", {"budget": 32, "window": 8}, 40),
    ],
)
def test_reading_a_part_of_everything_is_not_keeping_everything(
    name: str, options: dict, tokens: int
) -> None:
    method = methods.create(name, **options)
    read = method.step_table(tokens + 40, SHAPE)
    assert int(read.min()) == tokens
    assert not keeps_everything(method, tokens + 40, SHAPE)
    assert keeps_everything(method, tokens, SHAPE)
    assert mean_read_tokens(method, tokens, SHAPE) == tokens
