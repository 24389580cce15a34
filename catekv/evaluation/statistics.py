"""Means with bootstrap intervals, single and paired, over one task or averaged over several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 20250701


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap interval; ``count`` is the number of samples behind it."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap_average(
    groups: Mapping[str, Sequence[float]], *, confidence: float = 0.95, seed: int = SEED
) -> Estimate | None:
    """Unweighted mean of the groups' means; every group is resampled on its own.

    RULER's average over tasks is such a mean; with a single group it is an ordinary mean. The same
    values in the same order give the same percentile interval: the generator is seeded. Groups
    without values are left out; None if none is left.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in groups.values() if len(values)]
    if not arrays:
        return None
    generator = np.random.default_rng(seed)
    draws = np.zeros(RESAMPLES)
    for array in arrays:
        indices = generator.integers(0, len(array), size=(RESAMPLES, len(array)))
        draws += array[indices].mean(axis=1)
    draws /= len(arrays)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    mean = float(np.mean([array.mean() for array in arrays]))
    return Estimate(mean, float(low), float(high), sum(len(array) for array in arrays))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> Sequence[float]:
    """``values - reference`` on the samples both have, ordered by sample index."""
    return [values[index] - reference[index] for index in sorted(set(values) & set(reference))]
