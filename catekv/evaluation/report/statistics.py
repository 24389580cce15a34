"""Means with their intervals, single and paired, over one task or averaged over several.

scipy's bootstrap resamples one array; an average over tasks needs its samples drawn within every
task (stratified), with the same draws for both sides of a paired difference.

The bootstrap only knows what it saw: four right answers of four give an interval of no width. So
groups of fewer than :data:`FEW` values, and groups of equal values, are treated otherwise: see
:func:`bootstrap_average`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

RESAMPLES = 2000
SEED = 20250701
#: Groups of fewer values are not left to the bootstrap alone.
FEW = 20
#: Ends of the scale of a score, and of the difference of two scores.
SCORES, DIFFERENCES = (0.0, 1.0), (-1.0, 1.0)
#: A difference of scores whose interval reaches further than this could be a large one.
LARGE = 0.1
#: How the intervals of scores are made, for the foot of a table.
HOW = (
    f"bootstrap over samples; with fewer than {FEW} samples of a task, or equal scores: Wilson "
    "(one task, right or wrong) or Bayesian bootstrap with one sample more at either end of the "
    "scale"
)
#: Resampling weights of up to so many numbers are kept: cells of a table mostly have equal sizes.
_KEPT = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; ``count`` is the number of samples behind it.

    ``low`` and ``high`` are infinite where the samples bound nothing: one value without a scale.
    """

    mean: float
    low: float
    high: float
    count: int

    def within(self, low: float, high: float = math.inf) -> Estimate:
        """The same with an interval that does not leave the values' range."""
        return Estimate(self.mean, max(self.low, low), min(self.high, high), self.count)


def bootstrap_average(
    groups: Mapping[str, Sequence[float]],
    *,
    scale: tuple[float, float] | None = None,
    confidence: float = 0.95,
    seed: int = SEED,
) -> Estimate | None:
    """Unweighted mean of the groups' means; every group is resampled on its own.

    RULER's average over tasks is such a mean; with a single group it is an ordinary mean. The same
    values in the same order give the same percentile interval: the generator is seeded. Groups
    without values are left out; None if none is left.

    What fewer than :data:`FEW` values, or equal ones, cannot show:

    - with a ``scale``, Wilson's interval (Journal of the American Statistical Association 22, 1927)
      for a single group of values at its two ends, as scores of right and wrong answers are; else
      the Bayesian bootstrap (Rubin, Annals of Statistics 9, 1981) with one more value at either end
      of the scale, whose weight all groups share. The interval holds the mean;
    - without one, the draws are widened as Student's t is wider than the normal distribution.

    Args:
        scale: smallest and largest value that could have been: :data:`SCORES`,
            :data:`DIFFERENCES`; None: unknown.
    """
    arrays = _arrays(groups)
    if not arrays:
        return None
    mean = float(np.mean([array.mean() for array in arrays]))
    count = sum(map(len, arrays))
    if scale is None:
        return Estimate(mean, *interval(resampled_averages(groups, seed=seed), confidence), count)
    if len(arrays) == 1 and _is_weak(arrays[0]) and set(arrays[0]) <= set(scale) == {0.0, 1.0}:
        return Estimate(mean, *wilson(int(arrays[0].sum()), count, confidence), count)
    sizes = tuple(map(len, arrays))
    draws = np.zeros(RESAMPLES)
    for index, (weights, array) in enumerate(zip(_drawn(sizes, seed), arrays, strict=True)):
        if _is_weak(array):
            draws += _with_ends(array, scale, 1 / len(arrays), seed + index)
        else:
            draws += weights @ array / len(array)
    low, high = interval(draws / len(arrays), confidence)
    return Estimate(mean, min(low, mean), max(high, mean), count)


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: ``right`` of ``count``."""
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    share, square = right / count, z * z / count
    middle = (share + square / 2.0) / (1.0 + square)
    half = math.sqrt(square * (share * (1.0 - share) + square / 4.0)) / (1.0 + square)
    # at the ends of the scale the rounding of a difference is left out
    return (middle - half if right else 0.0), (middle + half if right < count else 1.0)


def resampled_averages(groups: Mapping[str, Sequence[float]], *, seed: int = SEED) -> np.ndarray:
    """The average of :func:`bootstrap_average` without a scale in every resample, fp64
    [RESAMPLES]; not finite where a group has one value only.

    Groups of the same sizes are drawn alike, so that functions of several averages (differences of
    perplexities) are paired.
    """
    arrays = _arrays(groups)
    draws = np.zeros(RESAMPLES)
    for index, (weights, array) in enumerate(
        zip(_drawn(tuple(map(len, arrays)), seed), arrays, strict=True)
    ):
        own = weights @ array / len(array)
        if len(array) < FEW:
            own = array.mean() + (own - array.mean()) * _widening(len(array), seed + index)
        draws += own
    return draws / len(arrays)


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values; infinite where they are not numbers."""
    if np.isnan(draws).any():
        return -math.inf, math.inf
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return float(low), float(high)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> Sequence[float]:
    """``values - reference`` on the samples both have, ordered by sample index."""
    return [values[index] - reference[index] for index in sorted(set(values) & set(reference))]


Told = Literal["below", "above", "alike", "unknown"]


def told(low: float, high: float, large: float = LARGE) -> Told:
    """What the interval of a difference says: it lies ``below`` or ``above`` 0, it holds 0 and is
    ``alike`` up to ``large``, or it is ``unknown``, because there are too few samples."""
    if high < 0:
        return "below"
    if low > 0:
        return "above"
    return "alike" if max(-low, high) <= large else "unknown"


def _arrays(groups: Mapping[str, Sequence[float]]) -> list[np.ndarray]:
    return [np.asarray(values, dtype=np.float64) for values in groups.values() if len(values)]


def _is_weak(values: np.ndarray) -> bool:
    """Whether the bootstrap of these values would be too sure."""
    return len(values) < FEW or bool((values == values[0]).all())


def _with_ends(
    values: np.ndarray, scale: tuple[float, float], weight: float, seed: int
) -> np.ndarray:
    """Means in every draw of the Bayesian bootstrap, with one value more at either end of the
    scale that has ``weight``, fp64 [RESAMPLES]."""
    generator = np.random.default_rng(seed)
    own = generator.standard_exponential((RESAMPLES, len(values)))
    ends = generator.standard_gamma(weight, (RESAMPLES, 2))
    return (own @ values + ends @ np.asarray(scale)) / (own.sum(axis=1) + ends.sum(axis=1))


@functools.lru_cache(maxsize=64)
def _widening(size: int, seed: int) -> np.ndarray:
    """Factors that make the spread of resampled means that of Student's t; not finite for one
    value."""
    if size == 1:
        return np.full(RESAMPLES, np.nan)
    generator = np.random.default_rng(seed)
    return np.sqrt(size / generator.chisquare(size - 1, RESAMPLES))


def _drawn(sizes: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """:func:`_weights`, kept unless they are too large."""
    draw = _weights if sum(sizes) * RESAMPLES <= _KEPT else _weights.__wrapped__
    return draw(sizes, seed)


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
