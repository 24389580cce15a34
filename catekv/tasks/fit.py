"""Fit a text of countable units to a number of tokens.

A unit is whatever a task can add one at a time (a sentence, a word, a document). The number of
tokens is asked from the model's real input path; it grows with the units almost linearly, so a
shrinking bracket with linear interpolation needs about four looks at a long prompt.
"""

from __future__ import annotations

from collections.abc import Callable

#: part of the budget that may stay unused before the search stops early
_SLACK = 0.002
#: looks after which interpolation gives way to halving, which cannot stall
_INTERPOLATIONS = 12


class TooLongError(Exception):
    """Even the smallest text is too long; ``tokens`` says how long it is."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


def largest_fit(
    measure: Callable[[int], int], low: int, budget: int, limit: int | None = None, step: int = 8
) -> tuple[int, int]:
    """The largest number of units whose text has at most ``budget`` tokens.

    Args:
        measure: tokens of the text with so many units.
        low: smallest allowed number of units.
        budget: tokens allowed.
        limit: number of units that exist (None: any number).
        step: units added for the first estimate of tokens per unit.

    Returns:
        (units, tokens). The search may stop below the largest number when less than 0.2 % of the
        budget is unused.

    Raises:
        TooLongError: if ``low`` units have more than ``budget`` tokens.
    """
    tokens = measure(low)
    if tokens > budget:
        raise TooLongError(tokens)
    slack = int(budget * _SLACK)
    high, high_tokens = (limit + 1 if limit is not None else None), None
    guess, looks = low + step, 0
    while high is None or high - low > 1:
        guess = max(guess, low + 1)
        if high is not None:
            guess = min(guess, high - 1)
        looks += 1
        found = measure(guess)
        if found <= budget:
            rate = (found - tokens) / (guess - low)
            low, tokens = guess, found
        else:
            rate = (found - tokens) / (guess - low)
            high, high_tokens = guess, found
        if budget - tokens <= slack:
            break
        if high is not None and high_tokens is not None:
            rate = (high_tokens - tokens) / (high - low)
        if looks > _INTERPOLATIONS and high is not None:
            guess = (low + high) // 2
        else:
            guess = low + (int((budget - tokens) / rate) if rate > 0 else 2 * (guess - low) + step)
    return low, tokens
