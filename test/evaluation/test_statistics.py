"""Means and intervals: seeded, paired, averaged over tasks, and wide where samples are few."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from catekv.evaluation.report.statistics import (
    DIFFERENCES,
    SCORES,
    Estimate,
    bootstrap_average,
    paired_difference,
    told,
    wilson,
)


def bootstrap_mean(values: list[float], **options: Any) -> Estimate | None:
    return bootstrap_average({"task": values}, **options)


def interval_of(groups: dict[str, list[float]], scale: tuple[float, float]) -> tuple[float, float]:
    estimate = bootstrap_average(groups, scale=scale)
    assert estimate is not None
    return estimate.low, estimate.high


def test_no_values_give_no_estimate() -> None:
    assert bootstrap_mean([]) is None
    assert bootstrap_average({"a": [], "b": []}) is None


def test_without_a_scale_equal_values_give_an_interval_of_no_width() -> None:
    estimate = bootstrap_mean([0.5] * 10)
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high, estimate.count) == (0.5, 0.5, 0.5, 10)


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(0.6, 0.2, size=400)
    estimate = bootstrap_mean(values.tolist())
    assert estimate is not None
    half = 1.96 * values.std() / np.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(5).uniform(size=50).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_tasks_weigh_the_same_whatever_their_number_of_samples() -> None:
    estimate = bootstrap_average({"large": [1.0] * 90, "small": [0.0] * 10, "empty": []})
    assert estimate is not None
    assert (estimate.mean, estimate.count) == (0.5, 100)


def test_differences_are_paired_by_sample() -> None:
    assert paired_difference({0: 1.0, 2: 0.5, 3: 1.0}, {3: 0.0, 0: 1.0, 1: 1.0}) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(4, 4, 0.5101, 1.0), (0, 4, 0.0, 0.4899), (1, 29, 0.0061, 0.1718), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_s_interval_has_its_published_values(
    right: int, count: int, low: float, high: float
) -> None:
    # of 0 of 4 in closed form: 1 - 1 / (1 + z^2 / 4); the others are examples of Newcombe (1998)
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_right_and_wrong_answers_of_one_task_have_wilson_s_interval() -> None:
    assert interval_of({"task": [1.0] * 4}, SCORES) == wilson(4, 4)
    assert interval_of({"task": [0.0, 1.0] * 4}, SCORES) == wilson(4, 8)
    assert interval_of({"task": [1.0] * 50}, SCORES) == wilson(50, 50)


def test_many_samples_that_differ_have_the_interval_of_the_bootstrap() -> None:
    values = [0.0, 1.0, 1.0, 1.0] * 5
    assert bootstrap_mean(values, scale=SCORES) == bootstrap_mean(values)


def test_one_task_all_right_and_one_all_wrong_is_no_certain_half() -> None:
    low, high = interval_of({"right": [1.0] * 4, "wrong": [0.0] * 4}, SCORES)
    assert (low, high) == pytest.approx((0.33, 0.67), abs=0.03)


def test_many_tasks_all_right_are_about_as_sure_as_all_their_samples() -> None:
    groups = {str(task): [1.0] * 20 for task in range(13)}
    low, high = interval_of(groups, SCORES)
    assert high == 1.0
    assert low == pytest.approx(wilson(260, 260)[0], abs=0.01)


def test_two_lost_samples_are_no_proof_of_a_loss() -> None:
    low, high = interval_of({"task": [-1.0, -1.0]}, DIFFERENCES)
    assert low == -1.0
    assert high > 0.0
    # with all of six, a sign test is below 5 % as well
    assert interval_of({"task": [-1.0] * 6}, DIFFERENCES)[1] < 0.0


def test_differences_that_are_all_0_have_a_width_that_falls_with_the_samples() -> None:
    widths = []
    for count in (2, 8, 32, 200):
        low, high = interval_of({"task": [0.0] * count}, DIFFERENCES)
        assert low == pytest.approx(-high, abs=0.04)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.05


def test_half_scores_of_few_samples_stay_within_the_scale() -> None:
    low, high = interval_of({"task": [0.5, 0.5, 1.0]}, SCORES)
    assert 0.0 <= low < 0.5
    assert 0.8 < high <= 1.0


def test_the_interval_of_few_scores_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(11)
    held = 0
    for _ in range(200):
        groups = {str(p): (draws.random(8) < p).astype(float).tolist() for p in (0.95, 0.6, 0.3)}
        low, high = interval_of(groups, SCORES)
        held += low <= (0.95 + 0.6 + 0.3) / 3 <= high
    assert 180 <= held <= 200


def test_without_a_scale_few_values_have_the_interval_of_student_s_t() -> None:
    # s = 1 and t(2; 0.975) = 4.303
    estimate = bootstrap_mean([-1.0, 0.0, 1.0])
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((-2.48, 2.48), abs=0.5)


def test_one_value_without_a_scale_bounds_nothing() -> None:
    estimate = bootstrap_mean([0.3])
    assert estimate is not None
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)
    assert estimate.within(0.0, 1.0) == Estimate(0.3, 0.0, 1.0, 1)


def test_what_an_interval_of_a_difference_says() -> None:
    assert told(-0.44, -0.06) == "below"
    assert told(0.01, 0.2) == "above"
    assert told(-0.08, 0.05) == "alike"
    assert told(-0.3, 0.05) == "unknown"
