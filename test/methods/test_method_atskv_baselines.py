"""The namesakes of DynamicKV and RocketKV that ATSKV compared with."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape

SHAPE = ModelShape(3, 4, 2, 8)
NAMES = ["atskv_dynamic_kv", "atskv_rocket_kv"]


def tensors(batch: int = 2, tokens: int = 41) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = 2 * torch.randn(batch, 4, tokens, 8, generator=generator)
    keys, values = torch.randn(2, batch, 2, tokens, 8, generator=generator)
    return queries, keys, values


def received(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention that each token received, from the whole attention matrix: [batch, tokens]."""
    logits = queries @ keys.repeat_interleave(2, dim=1).transpose(2, 3) * 8**-0.5
    hidden = torch.ones(logits.shape[-2:]).triu(1).bool()
    return logits.masked_fill(hidden, -torch.inf).softmax(dim=-1).sum(dim=(1, 2))


def best(scores: Tensor, count: int) -> Tensor:
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


def test_dynamic_keeps_the_tokens_that_received_most() -> None:
    queries, keys, values = tensors()
    method = methods.create("atskv_dynamic_kv", ratio=[0.25, 0.5, 0.9])
    for layer, count in enumerate([10, 20, 36]):
        keep = method.select(queries, keys, values, layer, 3).keep
        assert keep is not None
        wanted = best(received(queries, keys), count)
        assert torch.equal(keep, wanted[:, None].expand_as(keep))


def test_the_controller_makes_the_next_method() -> None:
    """The specification's steps: two cuts, one rise, one hold."""
    method = methods.create("atskv_dynamic_kv")
    found = []
    for memory, performance in [(120, 0.97), (130, 0.97), (80, 0.9), (85, 0.99)]:
        method = method.controlled(memory, 100, performance)
        found.append(method.ratio)
    assert found == pytest.approx([0.45, 0.405, 0.4455, 0.4455])
    layers = methods.create("atskv_dynamic_kv", ratio=[0.5, 0.105, 0.9])
    assert layers.controlled(200, 100, 1.0).ratio == pytest.approx((0.45, 0.1, 0.81))


def test_rocket_zeroes_the_channels_of_small_keys() -> None:
    queries, keys, values = tensors()
    found = methods.create("atskv_rocket_kv").select(queries, keys, values)
    assert found.keep is None
    keep = best(received(queries, keys), 41 - 20)
    for b in range(2):
        for head in range(2):
            own = keys[b, head, keep[b]]
            # 5 of 8 channels: floor(0.7 * 8)
            largest = own.abs().mean(dim=0).sort(descending=True).indices[:3]
            mask = torch.zeros(8).index_fill(0, largest, 1.0)
            assert torch.equal(found.keys[b][head], own * mask)
            assert torch.equal(found.values[b][head], values[b, head, keep[b]] * mask)
    assert found.bias is None
    assert found.budgets.tolist() == [[21, 21]] * 2


def test_rocket_without_sparsity_only_evicts() -> None:
    queries, keys, values = tensors()
    found = methods.create("atskv_rocket_kv", sparsity=0.0).select(queries, keys, values)
    assert found.keep is not None
    assert torch.equal(found.keep[:, 0], best(received(queries, keys), 21))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [None, 7, 40])
def test_budget_table_foretells_what_is_kept(name: str, budget: int | None) -> None:
    method = methods.create(name, budget=budget)
    for tokens in (1, 2, 9, 41):
        table = method.budget_table(tokens, SHAPE)
        for layer in range(3):
            found = method.select(*tensors(1, tokens), layer, 3)
            assert torch.equal(found.budgets[0], table[layer])


@pytest.mark.parametrize("name", NAMES)
def test_prompts_within_the_budget_are_untouched(name: str) -> None:
    found = methods.create(name, budget=41).select(*tensors())
    assert found.keep is not None
    assert bool(found.keep.all())


@pytest.mark.parametrize("name", NAMES)
def test_equal_memory(name: str) -> None:
    method = methods.create(name).with_total(3 * 2 * 11, 41, SHAPE)
    assert int(method.select(*tensors(1)).budgets.sum()) == 2 * 11


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_equals_its_single_prompts(name: str) -> None:
    method = methods.create(name)
    queries, keys, values = tensors()
    valid = torch.ones(2, 41, dtype=torch.bool)
    valid[1, :6] = False
    together = method.select(queries, keys, values, valid=valid)
    short = method.select(queries[1:, :, 6:], keys[1:, :, 6:], values[1:, :, 6:])
    for head in range(2):
        assert torch.equal(together.keys[1][head], short.keys[0][head])
        assert torch.equal(together.values[1][head], short.values[0][head])


@pytest.mark.parametrize("name", NAMES)
def test_methods_survive_json(name: str) -> None:
    method = methods.create(name)
    assert methods.from_dict(json.loads(json.dumps(method.to_dict()))) == method


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("atskv_dynamic_kv", {"ratio": 0.95}, r"ratio 0.95 is outside its limits \[0.1, 0.9\]"),
        ("atskv_dynamic_kv", {"ratio": [0.5, 0.05]}, "ratio 0.05 is outside"),
        ("atskv_dynamic_kv", {"min_ratio": 0.9, "max_ratio": 0.2}, "must be ordered"),
        ("atskv_dynamic_kv", {"budget": 0}, "budget 0 must be at least 1"),
        ("atskv_rocket_kv", {"eviction": 1.5}, "eviction 1.5 is outside"),
        ("atskv_rocket_kv", {"sparsity": -0.1}, "sparsity -0.1 is outside"),
        ("atskv_rocket_kv", {"budget": 0}, "budget 0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create(name, **options)


def test_ratios_must_fit_the_layers() -> None:
    with pytest.raises(UserError, match="2 ratios for 3 layers"):
        methods.create("atskv_dynamic_kv", ratio=[0.5, 0.5]).validate(SHAPE)


def test_rocket_needs_values_as_wide_as_keys() -> None:
    queries, keys, values = tensors()
    with pytest.raises(UserError, match="8 and 4 in this model"):
        methods.create("atskv_rocket_kv").select(queries, keys, values[..., :4])
