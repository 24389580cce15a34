"""Answers of InfiniteBench that choose one of four options: how the choice is read from text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LETTERS = "ABCD"
_BEFORE_CHOICE = ("answer is:", "answer:", "answer is", "option is")
_BEFORE_FUNCTION = ("answer is:", "is:", "answer:", "correct option is:")


def spaced(text: str, signs: str) -> str:
    """The text with every one of ``signs`` replaced by a space."""
    return text.translate({ord(sign): " " for sign in signs})


def _squeezed(text: str) -> str:
    return re.sub(" {2,}", " ", text)


def _after(text: str, phrases: Sequence[str]) -> str | None:
    """What follows the first of ``phrases`` that occurs, less one character; None without any."""
    for phrase in phrases:
        place = text.find(phrase)
        if place >= 0:
            return text[place + len(phrase) + 1 :]
    return None


def choice(prediction: str, label: Sequence[str]) -> float:
    """longbook_choice_eng; ``label`` holds the text and the letter of the right option.

    A first character A to D decides. Else the whole answer may equal a label. Else what follows
    "answer is" or the like must start with a label. Else the first word that is a part of "ABCD"
    (so "A", but also "AB") must be one.
    """
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in _LETTERS:
        return float(text[0] in label)
    if text in label:
        return 1.0
    text = _squeezed(spaced(text, "\n\"'.,?!{}"))
    rest = _after(text, _BEFORE_CHOICE)
    if rest is not None:
        return float(rest.startswith(tuple(label)))
    return float(next((word in label for word in text.split() if word in _LETTERS), False))


def faulty_function(prediction: str, label: Sequence[str]) -> float:
    """code_debug; ``label`` holds the function's name and its letter.

    The answer starts with the letter and "." or ":", or after "answer is:" or the like come the
    letter or the name.
    """
    name, letter = label[0], label[1]
    text = prediction.strip()
    if text.startswith((f"{letter}.", f"{letter}:")):
        return 1.0
    text = re.sub("[Oo]ption", " ", spaced(text, "\n`'\"-*"))
    rest = _after(_squeezed(text), _BEFORE_FUNCTION)
    return float(rest is not None and rest.startswith((letter, name)))
