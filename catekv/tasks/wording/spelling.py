"""How answers in the embedded model's vocabulary are read by the published rules.

That vocabulary has two-digit numerals and no signs but the full stop, so it can write neither
``470388`` nor ``60%`` nor ``B.``. A sample whose answer is of such a kind says in
``scoring["spelling"]`` how its words are spelled out before the rule of the task is applied.
Samples in other wordings have none, and their answers are scored as they are.
"""

from __future__ import annotations

import re
from typing import Any

_GAP = re.compile(r"(?<=\d) +(?=\d)")
_NUMERAL = re.compile(r"\b\d+\b")


def joined() -> dict[str, Any]:
    """Neighbouring numerals are one number: ``47 03 88`` is ``470388``."""
    return {"kind": "joined"}


def percent() -> dict[str, Any]:
    """A numeral is a percentage."""
    return {"kind": "percent"}


def named(texts: dict[str, str]) -> dict[str, Any]:
    """An answer that starts with a key of ``texts`` stands for its value, e.g. an option's letter.

    Any other answer stands for nothing.
    """
    return {"kind": "named", "texts": texts}


def spelled(prediction: str, spelling: dict[str, Any] | None) -> str:
    """The answer as the published rule reads it; unchanged without a spelling."""
    if spelling is None:
        return prediction
    if spelling["kind"] == "joined":
        return _GAP.sub("", prediction)
    if spelling["kind"] == "percent":
        return _NUMERAL.sub(lambda found: found.group() + "%", prediction)
    words = prediction.split()
    for text, meaning in spelling["texts"].items():
        wanted = text.split()
        if words[: len(wanted)] == wanted:
            return str(meaning)
    return ""
