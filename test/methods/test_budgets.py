"""The formulas that split tokens over layers and heads."""

from __future__ import annotations

import pytest
import torch

from catekv.errors import UserError
from catekv.methods.formulas.budgets import (
    ada_counts,
    cokv_weights,
    combine_slices,
    extreme_groups,
    headkv_quotas,
    largest_remainder,
    proportional,
    pyramid_budgets,
    shares,
)

COKV_SCORES = torch.tensor([0.10, -0.05, 0.30, 0.02, 0.20, -0.10], dtype=torch.float64)


def cokv(scores: torch.Tensor, alpha: int, total: int, rounding: str) -> list[int]:
    return proportional(cokv_weights(scores, alpha), total, rounding).tolist()


def test_largest_remainder_spends_everything_and_ties_go_to_the_front() -> None:
    assert largest_remainder(torch.tensor([1.0, 1.0, 1.0]), 5).tolist() == [2, 2, 1]
    assert largest_remainder(torch.tensor([0.5, 0.3, 0.2]), 10).tolist() == [5, 3, 2]
    assert largest_remainder(torch.tensor([[1.0, 2.0], [0.0, 4.0]]), 9).tolist() == [[1, 3], [0, 5]]
    assert largest_remainder(torch.zeros(4), 6).tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("total", [0, 1, 7, 1000, 2**30 + 1])
def test_largest_remainder_is_exact_for_any_total(total: int) -> None:
    weights = torch.rand(32, 8, generator=torch.Generator().manual_seed(1))
    counts = largest_remainder(weights, total)
    assert int(counts.sum()) == total
    quota = weights.double() / weights.double().sum() * total
    assert float((counts - quota).abs().max()) <= 1


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(UserError, match="cannot split -1 tokens"):
        largest_remainder(torch.ones(2), -1)
    with pytest.raises(UserError, match="negative weight -2"):
        shares(torch.tensor([1.0, -2.0]), 3)


def test_a_limit_cuts_and_the_surplus_is_lost_or_shared() -> None:
    weights = torch.tensor([1.0, 2.0, 0.0, 5.0])
    assert proportional(weights, 80, limit=30).tolist() == [10, 20, 0, 30]
    assert proportional(weights, 80, limit=30, redistribute=True).tolist() == [20, 30, 0, 30]
    # once every weighted entry is full, the others share what is left
    full = proportional(weights, 100, "largest_remainder", 30, redistribute=True)
    assert full.tolist() == [30, 30, 10, 30]
    assert int(proportional(weights, 999, "largest_remainder", 30, True).sum()) == 4 * 30


def test_pyramid_worked_examples() -> None:
    long = pyramid_budgets(120, 32, 8000, 8)
    assert long[:3].tolist() == [234, 227, 220]
    assert (int(long[-1]), int(long.sum())) == (17, 4016)
    assert pyramid_budgets(120, 32, 150, 8).tolist() == [120] * 32
    clamped = pyramid_budgets(120, 32, 150, 8, short_prompt="clamped")
    assert (int(clamped[0]), int(clamped[-1])) == (142, 111)
    assert int(pyramid_budgets(120, 32, 8000, 8, rescale=True).sum()) == 3840
    assert pyramid_budgets(120, 1, 8000, 8).tolist() == [120]
    assert pyramid_budgets(120, 4, 100, 8).tolist() == [92] * 4
    assert pyramid_budgets(100, 4, 800, 8, step="fractional").tolist() == [195, 132, 68, 5]


def test_pyramid_golden(golden) -> None:
    for case in golden("baselines", "pyramid_budgets"):
        given, expected = case["inputs"], case["expected"]
        base = given["capacity"] - given["window"]
        options = (given["layers"], given["tokens"], given["window"], given["beta"])
        budgets = pyramid_budgets(base, *options, given["short_prompt"])
        assert budgets.tolist() == expected["budgets"]
        assert int(budgets.sum()) == expected["total"]
        exact = pyramid_budgets(base, *options, given["short_prompt"], rescale=True)
        assert int(exact.sum()) == expected["uniform_total"]


PEAKED = torch.tensor(
    [[0.9, 0.055, 0.03, 0.01, 0.005, 0, 0, 0, 0, 0],
     [0.15, 0.14, 0.13, 0.12, 0.11, 0.1, 0.09, 0.07, 0.05, 0.04]]
)[None]  # fmt: skip


def test_ada_worked_example() -> None:
    base = torch.tensor([5, 5])
    assert ada_counts(PEAKED, base, 0.2).tolist() == [[3, 7]]
    assert ada_counts(PEAKED, base, 0.0).tolist() == [[2, 8]]
    assert ada_counts(PEAKED, base, 1.0).tolist() == [[5, 5]]
    assert ada_counts(PEAKED, base, 0.2, exact=True).tolist() == [[3, 7]]


def test_ada_golden(golden) -> None:
    for case in golden("baselines", "adakv"):
        given, expected = case["inputs"], case["expected"]
        scores = torch.tensor(given["scores"])[None]
        base = torch.full((scores.shape[1],), given["base"])
        assert ada_counts(scores, base, 0.0)[0].tolist() == expected["counts"]
        capacities = ada_counts(scores, base, given["floor"])[0]
        assert capacities.tolist() == expected["capacities"]
        assert (capacities + given["window"]).tolist() == expected["with_window"]


@pytest.mark.parametrize("options", [{"exact": True}, {"safeguard": "reserved"}])
def test_ada_can_be_exact(options: dict) -> None:
    scores = torch.rand(3, 8, 50, generator=torch.Generator().manual_seed(2)) ** 4
    base = torch.tensor([3, 5, 7, 9, 11, 13, 0, 2])
    for floor in (0.0, 0.2, 0.5, 1.0):
        assert ada_counts(scores, base, floor, **options).sum(-1).tolist() == [50] * 3


def test_ada_reserved_leaves_every_head_its_share() -> None:
    scores = torch.cat([torch.full((1, 1, 20), 0.9), torch.full((1, 1, 20), 0.1)], dim=1)
    counts = ada_counts(scores, torch.tensor([8, 8]), 0.5, safeguard="reserved")
    assert counts.tolist() == [[12, 4]]
    # the window counts towards the share: floor(0.5 * (8 + 4)) - 4
    counts = ada_counts(scores, torch.tensor([8, 8]), 0.5, safeguard="reserved", window=4)
    assert counts.tolist() == [[14, 2]]


def test_ada_normalisation_weighs_heads_by_their_concentration() -> None:
    scores = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.4, 0.4, 0.4, 0.4]]])
    base = torch.tensor([1, 1])
    assert ada_counts(scores, base, 0.0, normalise=True).tolist() == [[2, 0]]
    scores = torch.tensor([[[0.3, 0.0, 0.0, 0.0], [0.4, 0.4, 0.4, 0.4]]])
    assert ada_counts(scores, base, 0.0).tolist() == [[0, 2]]
    assert ada_counts(scores, base, 0.0, normalise=True).tolist() == [[1, 1]]


def test_headkv_worked_examples() -> None:
    assert headkv_quotas(torch.tensor([8.0, 4, 2, 2]), 120, 1.01).tolist() == [238, 120, 61, 61]
    assert headkv_quotas(torch.ones(4), 120, 1.01).tolist() == [120] * 4
    assert headkv_quotas(torch.zeros(4), 120, 1.01).tolist() == [120] * 4
    # a larger beta pools less and is more uniform
    assert headkv_quotas(torch.tensor([3.0, 1]), 120, 2).tolist() == [150, 90]


def test_headkv_golden(golden) -> None:
    for case in golden("baselines", "headkv"):
        given, expected = case["inputs"], case["expected"]
        base = given["capacity"] - given["window"]
        assert base // given["beta"] * len(given["scores"]) == expected["pool"]
        assert base - base // given["beta"] == expected["floor"]
        quotas = headkv_quotas(torch.tensor(given["scores"]), base, given["beta"])
        assert proportional(quotas, base * len(quotas)).tolist() == expected["capacities"]


def test_cokv_worked_examples() -> None:
    assert cokv(COKV_SCORES, 1, 72, "floor") == [13, 3, 26, 8, 20, 0]
    assert cokv(COKV_SCORES, 2, 72, "floor") == [13, 0, 30, 6, 21, 0]
    assert cokv(COKV_SCORES, 2, 72, "largest_remainder") == [13, 0, 31, 6, 22, 0]
    assert cokv(torch.full((3,), 0.3), 1, 36, "floor") == [12, 12, 12]


def test_cokv_golden(golden) -> None:
    for case in golden("cokv", "budgets"):
        given, expected = case["inputs"], case["expected"]
        scores = torch.tensor(given["scores"], dtype=torch.float64)
        total = (given["base_capacity"] - given["window"]) * len(scores)
        assert total == expected["shared_budget"]
        extra = cokv(scores, given["alpha"], total, given["rounding"])
        assert extra == expected["extra"]
        assert [count + given["window"] for count in extra] == expected["with_window"]
        assert sum(extra) == expected["total_extra"]


def test_cokv_groups_tied_with_the_border_get_nothing() -> None:
    scores = torch.tensor([0.1 + 0.2, 0.3, 0.6], dtype=torch.float64)
    assert cokv(scores, 1, 10, "floor") == [0, 0, 10]


def test_masked_groups_golden_and_exactly_as_many_as_asked(golden) -> None:
    for case in golden("cokv", "mask_groups"):
        given = case["inputs"]
        found = extreme_groups(torch.tensor(given["scores"]), given["k"], given["which"])
        assert found.tolist() == case["expected"]["masked"]
    assert extreme_groups(torch.ones(5), 2, "top").tolist() == [0, 1]
    assert extreme_groups(torch.ones(5), 2, "low").tolist() == [0, 1]


def test_slices_are_averaged_as_they_are_or_scaled() -> None:
    slices = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[30.0, 20.0], [10.0, 0.0]]])
    assert combine_slices(slices).tolist() == [[15.0, 10.5], [6.0, 1.5]]
    scaled = combine_slices(slices, "zscore")
    torch.testing.assert_close(scaled, torch.zeros(2, 2))
    assert torch.equal(combine_slices(slices[0], "zscore"), slices[0])
