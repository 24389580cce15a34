"""Fit a text of countable units to a number of tokens.

A unit is whatever a task can add one at a time (a sentence, a word, a document). The search runs on
an estimate that adds up the tokens of single words, which are remembered; the model's real input
path then confirms the result, so that a long prompt is tokenised about twice instead of ten times.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Protocol

from catekv.errors import UserError

#: share of the length that samples fill at least
MINIMUM_FILL = 0.97
#: below this share words of filler are added to the whole units
_TOP_UP_BELOW = 0.99
#: part of the budget that may stay unused before the search stops early
_SLACK = 0.002
#: corrections of the estimate before the search falls back on exact counts
_CORRECTIONS = 6
#: looks after which interpolation gives way to halving, which cannot stall
_INTERPOLATIONS = 12


class Fillable(Protocol):
    """A sample with all its draws made; only its length is open."""

    @property
    def minimum(self) -> int:
        """Smallest number of units."""

    @property
    def limit(self) -> int | None:
        """Number of units that there are, None for any number."""

    @property
    def extra_limit(self) -> int:
        """Largest number of extra words; 0: none are ever added."""


class TooLongError(Exception):
    """Even the smallest text is too long; ``tokens`` says how long it is."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


def largest_fit(
    measure: Callable[[int], int],
    low: int,
    budget: int,
    limit: int | None = None,
    step: int = 8,
    slack: int | None = None,
) -> tuple[int, int]:
    """The largest number of units whose text has at most ``budget`` tokens.

    Args:
        measure: tokens of the text with so many units.
        low: smallest allowed number of units.
        budget: tokens allowed.
        limit: number of units that exist (None: any number).
        step: units added for the first estimate of tokens per unit.
        slack: tokens that may stay unused; default 0.2 % of the budget.

    Returns:
        (units, tokens). The search may stop below the largest number when no more than ``slack``
        tokens are unused.

    Raises:
        TooLongError: if ``low`` units have more than ``budget`` tokens.
    """
    tokens = measure(low)
    if tokens > budget:
        raise TooLongError(tokens)
    slack = int(budget * _SLACK) if slack is None else slack
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


def confirmed_fit(
    estimate: Callable[[int], int],
    exact: Callable[[int], int],
    low: int,
    budget: int,
    limit: int | None = None,
    step: int = 8,
) -> tuple[int, int]:
    """:func:`largest_fit` searched with an estimate and confirmed by exact counts.

    The estimate is laid through the exact count of the smallest text, and after every confirmation
    its slope is corrected. The search aims at the middle of what may stay unused, so that one
    confirmation is usually enough: for a long prompt, that is where the time goes. The result is
    within the budget by exact count whatever the estimate is worth.
    """
    tokens = exact(low)
    if tokens > budget:
        raise TooLongError(tokens)
    slack = int(budget * _SLACK)
    best, best_tokens = low, tokens
    start, base = tokens, estimate(low)
    slope, tried = 1.0, {low}
    for _ in range(_CORRECTIONS):
        corrected = _line(estimate, start, base, slope)
        units, _ = largest_fit(corrected, low, budget - slack // 3, limit, step, slack // 3)
        if units in tried:
            return best, best_tokens
        tried.add(units)
        tokens = exact(units)
        if best_tokens < tokens <= budget:
            best, best_tokens = units, tokens
        if 0 <= budget - tokens <= slack:
            return best, best_tokens
        slope = (tokens - start) / max(1, estimate(units) - base)
    return largest_fit(exact, best, budget, limit, step)


def _line(
    estimate: Callable[[int], int], start: int, base: int, slope: float
) -> Callable[[int], int]:
    """The estimate moved and stretched: ``start`` where it says ``base``, then ``slope`` of it."""
    return lambda units: start + ceil(slope * (estimate(units) - base))


def filled(
    name: str,
    plan: Fillable,
    estimate: Callable[[int, int], int],
    exact: Callable[[int, int], int],
    length: int,
    reserved: int = 0,
    limit: int | None = None,
) -> tuple[int, int, int]:
    """The units and the extra words of a sample that fill a length, and its tokens.

    Args:
        name: of the task, for the message.
        estimate, exact: tokens of the sample with so many units and extra words.
        length: tokens to fill.
        reserved: of them, what the two leave out.
        limit: largest number of units; default the plan's own.

    Raises:
        UserError: the smallest sample is too long; the message says how long it is.
    """
    budget = length - reserved
    try:
        units, tokens = confirmed_fit(
            lambda units: estimate(units, 0),
            lambda units: exact(units, 0),
            plan.minimum,
            budget,
            plan.limit if limit is None else limit,
        )
    except TooLongError as error:
        raise UserError(
            f"{name} needs a length of at least {error.tokens + reserved} tokens with this "
            f"tokenizer, {length} are given; raise the length or lower max_answer_tokens"
        ) from None
    extra = 0
    if plan.extra_limit and tokens + reserved < _TOP_UP_BELOW * length:
        extra, tokens = confirmed_fit(
            lambda extra: estimate(units, extra),
            lambda extra: exact(units, extra),
            0,
            budget,
            plan.extra_limit,
            step=2,
        )
    return units, extra, tokens + reserved


def check_filled(name: str, tokens: int, length: int) -> None:
    """Raise ``UserError`` for a sample whose text ended before it filled its length."""
    if tokens < MINIMUM_FILL * length:
        raise UserError(
            f"{name} reaches only {tokens} of {length} tokens: the text it is made of is used up; "
            "give more text or a smaller length"
        )
