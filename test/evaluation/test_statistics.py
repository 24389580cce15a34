"""Bootstrap means: seeded, paired on the same samples, averaged over tasks."""

from __future__ import annotations

import numpy as np
import pytest

from catekv.evaluation.report.statistics import Estimate, bootstrap_average, paired_difference


def bootstrap_mean(values: list[float], **options: int) -> Estimate | None:
    return bootstrap_average({"task": values}, **options)


def test_no_values_give_no_estimate() -> None:
    assert bootstrap_mean([]) is None
    assert bootstrap_average({"a": [], "b": []}) is None


def test_equal_values_give_an_interval_of_no_width() -> None:
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
