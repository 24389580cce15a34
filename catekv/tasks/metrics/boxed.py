"""Answers of mathematical reasoning: the last box, and whether it is the right number or term."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")
#: how terms are compared where math-verify is not installed
BY_TEXT = "normalised text"
#: time for reading a term, and for comparing two
_SECONDS = 5
_DEGREES = re.compile(r"\^?\{?\\circ\}?|°|\\degree")
_INTEGER = re.compile(r"0*(\d{1,3})")
_THOUSANDS = re.compile(r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))")
_UNITS = re.compile(r"\\(?:text|mbox|mathrm)\{\s*[a-zA-Z. ]+\}(?:\^\{?\d\}?)?\s*$")


class Passed(NamedTuple):
    """Percent of right and of answered samples: mean over samples, then over problems."""

    pass_at_1: float
    answered: float


def boxed(response: str) -> str | None:
    """Content of the last non-empty ``\\boxed{}`` or ``\\fbox{}`` whose braces are balanced, after
    the last ``</think>``; None: unanswered."""
    text = response.rpartition("</think>")[2]
    for opening in reversed(list(_OPENING.finditer(text))):
        content = _balanced(text, opening.end())
        if content is not None and content.strip():
            return content.strip()
    return None


def _balanced(text: str, start: int) -> str | None:
    """What stands between ``start`` and the brace that closes it; None: nothing closes it."""
    depth, position = 1, start
    while position < len(text):
        sign = text[position]
        if sign == "\\":  # an escaped brace is a sign of the text
            position += 2
            continue
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return text[start:position]
        position += 1
    return None


def integer_0_999(text: str) -> int | None:
    """The answer of an AIME problem; leading zeros, dollar and degree signs do not count."""
    number = _INTEGER.fullmatch(_DEGREES.sub("", text).replace("$", "").strip())
    return int(number.group(1)) if number else None


def normalised(text: str) -> str:
    """A term without what does not change its value: spaces, sizes of brackets, units, commas."""
    for command in (r"\left", r"\right", r"\!", r"\,", r"\;", "$", r"\ "):
        text = text.replace(command, "")
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    text = _THOUSANDS.sub("", _DEGREES.sub("", _UNITS.sub("", text)))
    return "".join(text.split()).rstrip(".")


def comparison() -> str:
    """What compares terms here: ``math-verify`` with its version, or :data:`BY_TEXT`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"math-verify {version('math-verify')}"
    except PackageNotFoundError:
        return BY_TEXT


def equivalent(gold: str, answer: str) -> bool:
    """Whether two terms are equal, by math-verify (extra ``math``), gold first, each as one box;
    without that package by their normalised texts."""
    if normalised(gold) == normalised(answer):
        return True
    if comparison() == BY_TEXT:
        return False
    from math_verify import verify

    return bool(verify(_terms(gold), _terms(answer), timeout_seconds=_limit()))


def _limit() -> int | None:
    """Limits of time are signals there, which only the main thread may set."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None


def _terms(text: str) -> list[Any]:
    """What math-verify reads in a text: terms, and the text itself where it reads it as one."""
    from math_verify import parse

    return list(parse(rf"\boxed{{{text}}}", parsing_timeout=_limit()))


def readable(kind: str, answer: str) -> bool:
    """Whether what compares answers of this kind can read one: a whole number from 0 to 999
    (``aime``), a term (``math``). Without math-verify terms are texts, which can all be read."""
    if kind == "aime":
        return integer_0_999(answer) is not None
    return comparison() == BY_TEXT or any(not isinstance(term, str) for term in _terms(answer))


def right(kind: str, gold: str, answer: str | None) -> bool:
    """Whether an extracted answer is right; ``kind`` is ``aime`` (integers) or ``math`` (terms)."""
    if answer is None:
        return False
    if kind == "aime":
        number = integer_0_999(answer)
        return number is not None and number == integer_0_999(gold)
    return equivalent(gold, answer)


def pass_at_1(correct: Sequence[Sequence[float]], answered: Sequence[Sequence[float]]) -> Passed:
    """Percent, from one row of samples per problem."""

    def percent(rows: Sequence[Sequence[float]]) -> float:
        means = [sum(row) / len(row) for row in rows if row]
        return round(100 * sum(means) / len(means), 4) if means else 0.0

    return Passed(percent(correct), percent(answered))
