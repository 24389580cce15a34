"""The namesakes that SimCalKV was compared with."""

from __future__ import annotations

import pytest
import torch
from slot_rows import DIM, GROUP, HEADS, random_tensors

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.formulas.draws import uniform_numbers

SHAPE = ModelShape(3, HEADS * GROUP, HEADS, DIM)
NAMES = ["simcalkv_pyramidinfer", "simcalkv_keepkv", "simcalkv_cam"]


def received(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[kv_heads, tokens]: what each token of a single prompt received."""
    sums = kernels.column_sums(queries, keys, DIM**-0.5)
    return sums.unflatten(1, (HEADS, GROUP)).mean(dim=2)[0]


def split(sums: torch.Tensor, count: int) -> tuple[list[int], list[int]]:
    removed = sorted(range(len(sums)), key=lambda token: (float(sums[token]), token))[:count]
    return removed, [token for token in range(len(sums)) if token not in removed]


def test_every_layer_drops_one_percent_more() -> None:
    method = methods.create("simcalkv_pyramidinfer", ratio=0.5)
    assert method.budget_table(200, SHAPE).tolist() == [[100] * 2, [98] * 2, [96] * 2]
    qwen = methods.create("simcalkv_pyramidinfer", ratio=0.5, every=2)
    assert qwen.budget_table(200, SHAPE).tolist() == [[100] * 2, [100] * 2, [98] * 2]
    queries, keys, values = random_tensors(1, 200)
    found = method.select(queries, keys, values, layer=2, num_layers=3)
    sums = received(queries, keys)
    for head in range(HEADS):
        _, kept = split(sums[head], 104)
        assert found.keep[0, head].nonzero().flatten().tolist() == kept


def test_the_mean_ratio_is_kept_when_it_is_recommended() -> None:
    shape = ModelShape(32, 8, 2, 8)
    for ratio in (0.1, 0.4, 0.8):
        published = methods.create("simcalkv_pyramidinfer", ratio=min(ratio, 0.6))
        assert int(published.budget_table(1000, shape).sum()) < (1 - min(ratio, 0.6)) * 64000
        method = methods.create("simcalkv_pyramidinfer", preset="recommended", ratio=ratio)
        table = method.budget_table(1000, shape)
        assert int(table.sum()) == round((1 - ratio) * 64000)
        assert table[:, 0].tolist() == sorted(table[:, 0].tolist(), reverse=True)


def test_ratios_that_reach_one_are_refused() -> None:
    with pytest.raises(UserError, match="removes everything from layer 20 of 32 on"):
        methods.create("simcalkv_pyramidinfer", ratio=0.8).validate(ModelShape(32, 8, 2, 8))
    with pytest.raises(UserError, match="from layer 30 of 32"):
        methods.create("simcalkv_pyramidinfer", ratio=0.7).validate(ModelShape(32, 8, 2, 8))


@pytest.mark.parametrize("duplicates", ["last", "all"])
@pytest.mark.parametrize("threshold", [-1.0, 0.3])
def test_merges_are_weighted_means_without_votes(duplicates: str, threshold: float) -> None:
    queries, keys, values = random_tensors(1, 30)
    options = {"ratio": 0.7, "duplicates": duplicates, "threshold": threshold}
    found = methods.create("simcalkv_keepkv", **options).select(queries, keys, values)
    assert found.bias is None
    sums = received(queries, keys)
    for head in range(HEADS):
        removed, kept = split(sums[head], 21)
        query = queries[0, head * GROUP : (head + 1) * GROUP, -1].mean(dim=0)
        weights = (keys[0, head] @ query * DIM**-0.5).exp()
        into: dict[int, list[int]] = {token: [] for token in kept}
        for token in removed:
            cosines = torch.cosine_similarity(keys[0, head, token][None], keys[0, head, kept])
            if float(cosines.max()) > threshold:
                into[kept[int(cosines.argmax())]].append(token)
        for slot, token in enumerate(kept):
            members = into[token] if duplicates == "all" else into[token][-1:]
            members = [token, *members]
            share = weights[members] / weights[members].sum()
            for name, source in (("keys", keys), ("values", values)):
                torch.testing.assert_close(
                    getattr(found, name)[0][head][slot],
                    share @ source[0, head, members],
                    rtol=1e-5,
                    atol=1e-5,
                )
        assert max(len(members) for members in into.values()) > 1


@pytest.mark.parametrize("expected", [True, False])
def test_drawn_values_go_to_all_kept_tokens(expected: bool) -> None:
    queries, keys, values = random_tensors(1, 30)
    method = methods.create("simcalkv_cam", ratio=0.5, expected=expected, seed=7)
    given = 0.4 + torch.rand(1, HEADS, 30, generator=torch.Generator().manual_seed(0))
    of_heads = given.repeat_interleave(GROUP, dim=1)
    found = method.select(queries, keys, values, 1, 3, column_sums=of_heads)
    for head in range(HEADS):
        sums = given[0]
        removed, kept = split(sums[head], 15)
        chance = (sums[head, removed] / sums[head, kept].max()).clamp(0, 1)
        if not expected:
            place = torch.tensor(head), torch.tensor(removed)
            chance = (uniform_numbers(7, 1, *place) < chance).float()
            assert float(chance.sum()) > 0
        added = chance @ values[0, head, removed] / 15
        torch.testing.assert_close(
            found.values[0][head], values[0, head, kept] + added, rtol=1e-5, atol=1e-5
        )
        assert torch.equal(found.keys[0][head], keys[0, head, kept])


@pytest.mark.parametrize("name", NAMES)
def test_budgets_totals_padding_and_nothing_removed(name: str) -> None:
    queries, keys, values = random_tensors(2, 41)
    method = methods.create(name)
    exact = method.with_total(71, 41, SHAPE)
    assert int(exact.budget_table(41, SHAPE).sum()) == 71
    for one in (method, exact):
        for layer in range(3):
            found = one.select(queries, keys, values, layer=layer, num_layers=3)
            assert torch.equal(found.budgets[0], one.budget_table(41, SHAPE)[layer])
    valid = torch.ones(2, 41, dtype=torch.bool)
    valid[1, :13] = False
    together = method.select(queries, keys, values, valid=valid)
    alone = method.select(queries[1:, :, 13:], keys[1:, :, 13:], values[1:, :, 13:])
    for head in range(HEADS):
        torch.testing.assert_close(together.keys[1][head], alone.keys[0][head])
        torch.testing.assert_close(together.values[1][head], alone.values[0][head])
    whole = methods.create(name, ratio=0.0, **({"step": 0.0} if "pyramid" in name else {}))
    for head, row in enumerate(whole.select(queries, keys, values).values[1]):
        assert torch.equal(row, values[1, head])
    assert methods.from_dict(exact.to_dict()) == exact


@pytest.mark.parametrize("name", NAMES)
def test_bad_ratios_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="outside"):
        methods.create(name, ratio=1.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("simcalkv_keepkv", {"duplicates": "first"}, "use last or all"),
        ("simcalkv_keepkv", {"threshold": -2.0}, "outside"),
        ("simcalkv_pyramidinfer", {"every": 0}, "at least 1"),
        ("simcalkv_cam", {"total": -1}, "total -1 must be at least 0"),
        ("simcalkv_cam", {"seed": "x"}, "seed 'x' is not a whole number"),
        ("simcalkv_pyramidinfer", {"step": "x"}, "step 'x' is not a number"),
        ("simcalkv_pyramidinfer", {"step": float("nan")}, "step nan is not a number"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create(name, **options)
