"""LongBench v2: the letter that an answer names, and the table of its groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_WITH_PARENTHESES = r"The correct answer is \(([A-D])\)"
_WITHOUT = r"The correct answer is ([A-D])"
GROUPS = ("overall", "easy", "hard", "short", "medium", "long")
#: what guessing one of four letters is worth
COMPENSATION = 0.25


def extract_answer(response: str, *, strict: bool = False) -> str | None:
    """The letter after "The correct answer is", or None.

    Asterisks are deleted first. The form with parentheses is looked for before the one without;
    the first place where a form occurs decides. The original takes any capital A to D after the
    phrase, also the first letter of a word; ``strict`` asks that no letter or digit follows it.
    """
    text = response.replace("*", "")
    for pattern in (_WITH_PARENTHESES, _WITHOUT):
        found = re.search(pattern + (r"(?!\w)" if strict else ""), text)
        if found:
            return found.group(1)
    return None


def score(response: str, answer: str, *, compensated: bool = False, strict: bool = False) -> float:
    """1 if the response names the answer; naming none is 0, or 0.25 when ``compensated``."""
    letter = extract_answer(response, strict=strict)
    if letter is None and compensated:
        return COMPENSATION
    return float(letter == answer)


@dataclass(frozen=True)
class Row:
    """One scored answer. ``length`` is "short", "medium" or "long", ``truncated`` if cut."""

    score: float
    difficulty: str
    length: str
    truncated: bool = False


@dataclass(frozen=True)
class Report:
    """Percent per group with one decimal (None for an empty group), how many rows are in each, and
    the percentage of rows whose text was cut: where most are, compression is hardly tested."""

    scores: dict[str, float | None]
    counts: dict[str, int]
    truncated: float | None


def report(rows: Iterable[Row]) -> Report:
    """The published groups: overall, easy, hard, short, medium, long."""
    every = list(rows)

    def percent(values: list[float]) -> float | None:
        return round(100 * sum(values) / len(values), 1) if values else None

    parts = {
        name: [row.score for row in every if name in ("overall", row.difficulty, row.length)]
        for name in GROUPS
    }
    return Report(
        scores={name: percent(values) for name, values in parts.items()},
        counts={name: len(values) for name, values in parts.items()},
        truncated=percent([float(row.truncated) for row in every]),
    )
