"""Means with bootstrap intervals, single and paired, over one task or averaged over several.

scipy's bootstrap resamples one array; an average over tasks needs its samples drawn within every
task (stratified), with the same draws for both sides of a paired difference.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
SEED = 20250701
#: Resampling weights of up to so many numbers are kept: cells of a table mostly have equal sizes.
_KEPT = 4_000_000


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
    mean = float(np.mean([array.mean() for array in arrays]))
    draws = resampled_averages(groups, seed=seed)
    low, high = interval(draws, confidence)
    return Estimate(mean, low, high, sum(len(array) for array in arrays))


def resampled_averages(groups: Mapping[str, Sequence[float]], *, seed: int = SEED) -> np.ndarray:
    """The average of :func:`bootstrap_average` in every resample, fp64 [RESAMPLES].

    Groups of the same sizes are drawn alike, so that functions of several averages (differences of
    perplexities) are paired.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in groups.values() if len(values)]
    sizes = tuple(len(array) for array in arrays)
    weigh = _weights if sum(sizes) * RESAMPLES <= _KEPT else _weights.__wrapped__
    draws = np.zeros(RESAMPLES)
    for weights, array in zip(weigh(sizes, seed), arrays, strict=True):
        draws += weights @ array / len(array)
    return draws / len(arrays)


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return float(low), float(high)


@functools.lru_cache(maxsize=4)
def _weights(sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """How often every value is drawn in every resample, [RESAMPLES, size] for each group."""
    generator = np.random.default_rng(seed)
    found = []
    for size in sizes:
        drawn = generator.integers(0, size, size=(RESAMPLES, size))
        drawn += size * np.arange(RESAMPLES)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * size)
        found.append(counts.reshape(RESAMPLES, size).astype(np.float64))
    return found


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> Sequence[float]:
    """``values - reference`` on the samples both have, ordered by sample index."""
    return [values[index] - reference[index] for index in sorted(set(values) & set(reference))]
