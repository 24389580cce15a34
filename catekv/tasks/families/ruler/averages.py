"""RULER's numbers over several tasks and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: mean score of Llama-2-7B-chat at 4K tokens, which a length must reach to count as effective
EFFECTIVE = 85.6


def mean_of_tasks(scores: Mapping[str, float]) -> float:
    """Score of one length: the plain mean over its tasks (percent, by task name).

    Raises:
        ValueError: there is no task.
    """
    if not scores:
        raise ValueError("a mean needs at least one task")
    return sum(scores.values()) / len(scores)


def effective_length(means: Mapping[int, float], threshold: float = EFFECTIVE) -> int | None:
    """The longest length whose mean (percent) reaches the threshold; None if none does.

    Shorter lengths may lie below it: RULER asks for the longest one.
    """
    return max((length for length, mean in means.items() if mean >= threshold), default=None)


def weighted_averages(means: Sequence[float]) -> tuple[float, float]:
    """wAvg(inc) and wAvg(dec): means over rising lengths with weights 1 to n and n to 1.

    The first is for users of long contexts, the second for users of short ones.

    Raises:
        ValueError: there is no length.
    """
    if not means:
        raise ValueError("an average needs at least one length")
    weights = range(1, len(means) + 1)
    total = sum(weights)
    rising = sum(weight * mean for weight, mean in zip(weights, means, strict=True)) / total
    falling = sum(weight * mean for weight, mean in zip(weights, reversed(means), strict=True))
    return rising, falling / total
