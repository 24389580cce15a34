"""Scores of InfiniteBench, by the published rule of every task.

Where the published function raises, the score is 0 and :func:`rate` says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from catekv.errors import UserError
from catekv.tasks.metrics.chinese import character_f1_zh
from catekv.tasks.metrics.choices import choice, faulty_function, spaced
from catekv.tasks.metrics.rouge import rouge_google
from catekv.tasks.metrics.words import as_list, qa_f1


class Rated(NamedTuple):
    """A score in [0, 1], and why it is 0 where the published function raises."""

    value: float
    reason: str | None = None


_DIGITS = re.compile(r"[0-9]+")
#: more digits than any label has; Python itself refuses to convert thousands of them
_LONGEST_NUMBER = 1000


def _first(label: Any) -> Any:
    return label[0] if isinstance(label, list | tuple) else label


def _first_number(prediction: str, label: Any, model: str) -> Rated:
    found = _DIGITS.search(prediction)
    return Rated(float(found is not None and found.group() == str(_first(label))))


def _key_value(prediction: str, label: Any, model: str) -> Rated:
    words = spaced(prediction, "\n:\"'.,?!{}").split()
    return Rated(float(str(_first(label)) in words))


def _dialogue(prediction: str, label: Any, model: str) -> Rated:
    words = spaced(prediction, "\n:\"'.,?!{}").upper().split()
    return Rated(float(str(_first(label)) in words))


def _code_run(prediction: str, label: Any, model: str) -> Rated:
    words = spaced(prediction, "\n.`'\":").split()
    try:
        return Rated(float(bool(words) and int(words[-1]) == _first(label)))
    except ValueError:
        return Rated(0.0)


def _math_find(prediction: str, label: Any, model: str) -> Rated:
    wanted = _first(label)
    if not isinstance(wanted, int | float):
        raise UserError(f"math_find: label {wanted!r} is not a number; write it without quotes")
    found = re.search(r"\d+\.\d+|\d+", prediction)
    if found is None:
        return Rated(0.0)
    if isinstance(wanted, float):
        return Rated(float(float(found.group()) == wanted))
    if "." in found.group() or len(found.group()) > _LONGEST_NUMBER:
        shown = found.group()[:20]
        return Rated(0.0, f"first number {shown} is no whole number of usual size")
    return Rated(float(int(found.group()) == wanted))


def _math_calc(prediction: str, label: Any, model: str) -> Rated:
    if not isinstance(label, list | tuple) or not label:
        raise UserError(f"math_calc: label {label!r} is not a list of numbers")
    # as text without leading zeros: converting thousands of digits is slow or refused
    numbers = [digits.lstrip("0") or "0" for digits in _DIGITS.findall(prediction)]
    if model == "gpt4":  # it always repeats the first term before the values
        numbers = numbers[1:]
    right = 0
    for found, wanted in zip(numbers, label, strict=False):
        if found != str(wanted):
            break
        right += 1
    return Rated(right / len(label))


def _summary(prediction: str, label: Any, model: str) -> Rated:
    return Rated(rouge_google(prediction, as_list(label), ("rougeLsum",))["rougeLsum"].f)


_RULES: dict[str, Callable[[str, Any, str], Rated]] = {
    "passkey": _first_number,
    "number_string": _first_number,
    "kv_retrieval": _key_value,
    "longbook_sum_eng": _summary,
    "longbook_choice_eng": lambda text, label, model: Rated(choice(text, label)),
    "longbook_qa_eng": lambda text, label, model: Rated(qa_f1(text, label)),
    "longbook_qa_chn": lambda text, label, model: Rated(character_f1_zh(text, label)),
    "longdialogue_qa_eng": _dialogue,
    "math_find": _math_find,
    "math_calc": _math_calc,
    "code_run": _code_run,
    "code_debug": lambda text, label, model: Rated(faulty_function(text, label)),
}
TASKS = tuple(_RULES)


def rate(task: str, prediction: str, label: Any, model: str = "") -> Rated:
    """The score of one answer, with the reason where the published function raises.

    Args:
        task: one of :data:`TASKS`; "infinitebench/" before it is allowed.
        label: as in the files: a text, a number, or a list ([text, letter] for choices).
        model: only ``"gpt4"`` has a rule of its own, in math_calc.

    Raises:
        UserError: unknown task, or a label that its rule cannot read.
    """
    name = task.removeprefix("infinitebench/")
    if name not in _RULES:
        raise UserError(f"unknown InfiniteBench task {task!r}; available: {', '.join(TASKS)}")
    return _RULES[name](prediction, label, model)


def score(task: str, prediction: str, label: Any, model: str = "") -> float:
    """:func:`rate` without the reason."""
    return rate(task, prediction, label, model).value
