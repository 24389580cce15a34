"""The game: exact values, estimates from both accumulators, the stop rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from catekv.calibration.cokv.drawing import RUNS, Draw, check_slices, default_slices, draws_of_block
from catekv.calibration.cokv.game import (
    Sums,
    compare,
    exact_slices,
    require_visited,
    scores,
    slice_estimate,
)
from catekv.errors import UserError

GAME = {"base": 0.1, "weights": [0.1, 0.2, 0.05, 0.3, 0.0], "pairs": [[0, 1, 0.15], [2, 3, -0.1]]}


def utility(game: dict[str, Any]) -> Callable[[frozenset[int]], float]:
    def value(inside: frozenset[int]) -> float:
        pairs = [bonus for a, b, bonus in game["pairs"] if {a, b} <= inside]
        return game["base"] + sum(game["weights"][player] for player in inside) + sum(pairs)

    return value


def sums_over(coalitions: list[tuple[int, ...]], players: int, game: dict[str, Any]) -> Sums:
    value, everyone = utility(game), frozenset(range(players))
    sums = Sums.empty(players, len(coalitions[0]))
    for chosen in coalitions:
        members = np.isin(np.arange(players), chosen)
        inside = frozenset(chosen)
        sums = sums.plus(members, value(inside) - value(everyone - inside))
    return sums


def close(found: Any, expected: Any, tolerance: dict[str, float]) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance["rel"], atol=tolerance["abs"])


def test_exact_values_of_the_reference_game(golden) -> None:
    for case in golden("cokv", "shapley_exact"):
        given, expected = case["inputs"], case["expected"]
        values = exact_slices(utility(given["game"]), len(given["game"]["weights"]))
        close(values, expected["slice_values"], case["tolerance"])
        close(values.mean(axis=1), expected["shapley"], case["tolerance"])
        chosen = [size - 1 for size in given["H"]]
        close(values[:, chosen].mean(axis=1), expected["ssv"], case["tolerance"])
        players = len(values)
        for size, times_mean in enumerate(expected["n_times_D"], start=1):
            affine = size * values[:, size - 1] - (players - size) * values[:, players - size - 1]
            close(affine, times_mean, case["tolerance"])


def test_estimates_of_the_reference_permutations(golden) -> None:
    for case in golden("cokv", "estimator"):
        given, expected = case["inputs"], case["expected"]
        chosen = [tuple(order[: given["j"]]) for order in given["permutations"]]
        sums = sums_over(chosen, len(given["game"]["weights"]), given["game"])
        close(sums.left, expected["cc_left"], case["tolerance"])
        close(sums.right, expected["cc_right"], case["tolerance"])
        assert sums.left_count.tolist() == expected["count_left"]
        assert sums.right_count.tolist() == expected["count_right"]
        assert sums.draws == expected["sampling_count"]
        close(slice_estimate(sums, "left"), expected["left_only"], case["tolerance"])
        close(sums.right / sums.right_count, expected["right_only"], case["tolerance"])
        close(slice_estimate(sums), expected["pooled"], case["tolerance"])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("use", ["left", "both"])
def test_over_all_coalitions_every_estimate_is_exact(size: int, use: str) -> None:
    sums = sums_over(list(combinations(range(5), size)), 5, GAME)
    exact = exact_slices(utility(GAME), 5)[:, size - 1]
    np.testing.assert_allclose(slice_estimate(sums, use), exact, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_both_accumulators_are_closer_than_the_left_one(size: int) -> None:
    exact = exact_slices(utility(GAME), 5)[:, size - 1]
    errors = {"left": 0.0, "both": 0.0}
    for seed in range(50):
        chosen = [
            tuple(np.flatnonzero(Draw(index, size, "A").members(seed, 5)).tolist())
            for index in range(80)
        ]
        sums = sums_over(chosen, 5, GAME)
        for use in errors:
            # the ranking counts: a shift of all players alike changes no budget
            off = slice_estimate(sums, use) - exact
            errors[use] += float(((off - off.mean()) ** 2).sum())
    assert errors["both"] < errors["left"]


def test_sums_of_two_processes_are_those_of_one() -> None:
    coalitions = list(combinations(range(5), 2))
    parts = sums_over(coalitions[:4], 5, GAME).merged(sums_over(coalitions[4:], 5, GAME))
    whole = sums_over(coalitions, 5, GAME)
    np.testing.assert_allclose(slice_estimate(parts), slice_estimate(whole), atol=1e-12)
    assert parts.draws == whole.draws == 10
    with pytest.raises(UserError, match="slice 2 with 5 players and of slice 3"):
        parts.merged(sums_over(list(combinations(range(5), 3)), 5, GAME))


def test_players_that_were_never_drawn_are_named() -> None:
    sums = sums_over([(0,), (1,), (2,)], 5, GAME)
    assert sums.unvisited() == sums.unvisited("left") == [3, 4]
    assert np.isnan(slice_estimate(sums)[3:]).all()
    with pytest.raises(UserError, match=r"slice 1 has no estimate for layer 1 head 1, layer 2 he"):
        require_visited([sums], kv_heads=2)
    halves = sums_over([(0, 1)], 4, GAME)
    assert halves.unvisited() == []
    assert halves.unvisited("left") == [2, 3]


def test_stop_rule(golden) -> None:
    for case in golden("cokv", "stop_rule"):
        a, b = (np.array(case["inputs"][run]) for run in "ab")
        found, expected = compare(a, b), case["expected"]
        close(found.error, expected["mae"], case["tolerance"])
        assert found.tolerance == expected["tolerance"]
        assert found.reached is expected["stop"]
        close(found.final, expected["final"], case["tolerance"])
    unknown = compare(np.array([0.1, np.nan]), np.array([0.1, 0.2]))
    assert not unknown.reached
    with pytest.raises(UserError, match="2 and 3 players"):
        compare(np.zeros(2), np.zeros(3))


def test_scores_are_the_mean_of_the_slices() -> None:
    slices = [sums_over(list(combinations(range(5), size)), 5, GAME) for size in (1, 2)]
    exact = exact_slices(utility(GAME), 5)
    np.testing.assert_allclose(scores(slices), exact[:, :2].mean(axis=1), atol=1e-12)


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    members = Draw(7, 5, "A").members(seed=3, players=16)
    assert members.sum() == 5
    assert (members == Draw(7, 5, "A").members(3, 16)).all()
    others = [Draw(7, 5, "B"), Draw(8, 5, "A")]
    assert all((members != other.members(3, 16)).any() for other in others)
    assert (members != Draw(7, 5, "A").members(4, 16)).any()


@pytest.mark.parametrize("parts", [1, 3, 4, 8, 11])
def test_processes_share_every_draw_out(parts: int) -> None:
    slices = (2, 4, 6, 8)
    whole = draws_of_block(3, 5, slices)
    shared = [draws_of_block(3, 5, slices, part, parts) for part in range(parts)]
    assert sorted(draw for part in shared for draw in part) == sorted(whole)
    assert {(draw.size, draw.run) for draw in whole} == {(s, r) for s in slices for r in RUNS}
    assert {draw.index for draw in whole} == set(range(15, 20))
    if parts == 8:
        assert all(len({(draw.size, draw.run) for draw in part}) == 1 for part in shared)


def test_slices() -> None:
    assert default_slices(256) == (32, 64, 96, 128)
    assert default_slices(16) == (2, 4, 6, 8)
    assert default_slices(2) == (1,)
    assert check_slices((8, 2), 16) == (2, 8)
    for wrong, message in (
        ((), "every coalition size once"),
        ((2, 2), "every coalition size once"),
        ((16,), "outside 1 to 15"),
        ((0,), "outside 1 to 15"),
    ):
        with pytest.raises(UserError, match=message):
            check_slices(wrong, 16)


def test_wrong_games_are_refused() -> None:
    with pytest.raises(UserError, match="slice 5 is outside 1 to 4"):
        Sums.empty(5, 5)
    with pytest.raises(UserError, match="at most 14"):
        exact_slices(lambda inside: 0.0, 15)
    with pytest.raises(UserError, match="use both or left"):
        slice_estimate(Sums.empty(5, 2), "right")
