"""Scores of InfiniteBench answers: the published rule, and a stricter reading beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from catekv.tasks import metrics
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.infinitebench.prompts import CHOICES, PREFIX
from catekv.tasks.metrics import infinitebench
from catekv.tasks.wording.spelling import spelled

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
_LETTER = re.compile(r"(?<!\w)[A-D](?!\w)")
_WORD = re.compile(r"[\w-]+")


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official`` is the rule of the task as published; ``strict`` refuses answers that hold the
    right one among others: see :func:`strict`."""
    task = sample.task.removeprefix(PREFIX)
    label = sample.scoring.get("label", list(sample.outputs))
    text = spelled(prediction, sample.scoring.get("spelling"))
    official = infinitebench.score(task, text, label)
    options = sample.scoring.get("options", ())
    return {"official": official, "strict": strict(task, text, label, options, official)}


def strict(task: str, prediction: str, label: Any, options: Any, official: float) -> float:
    """The score without the leniencies of the published rule.

    ``passkey``, ``number_string``, ``math_find``: every number in the answer is the right one.
    ``kv_retrieval``: every word in the form of a value is the right one. ``math_calc``: all values
    and nothing more. Choices: one letter is named, the right one, or none and only the right text.
    The other tasks have no leniency: the official score.
    """
    first = label[0] if isinstance(label, list | tuple) else label
    if task in ("passkey", "number_string"):
        return float(set(re.findall(r"\d+", prediction)) == {str(first)})
    if task == "math_find":
        # whole numbers may have hundreds of digits, which no float holds
        exact: Callable[[Any], Any] = float if isinstance(first, float) else Decimal
        return float({exact(number) for number in _NUMBER.findall(prediction)} == {exact(first)})
    if task == "kv_retrieval":
        form = _form(str(first))
        return float({word for word in _WORD.findall(prediction) if _form(word) == form} == {first})
    if task == "math_calc":
        return float([Decimal(number) for number in _NUMBER.findall(prediction)] == list(label))
    if task in CHOICES:
        letters = set(_LETTER.findall(prediction))
        if letters:
            return float(letters == {label[1]})
        named = {text for text in options if metrics.strict_match_part(prediction, [text])}
        return float(named == {label[0]})
    return official


def _form(word: str) -> str:
    """Where a word has hyphens, and how long it is."""
    return re.sub(r"[^-]", "x", word)
