"""MRCR: an earlier text must be repeated behind a given prefix (difflib's ratio)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

#: characters of a response that are compared, as a multiple of the answer: the ratio takes
#: quadratic time
_LONGEST = 4
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


class Repeat(NamedTuple):
    """How well a text was repeated, and whether it began with the prefix."""

    ratio: float
    prefix_ok: bool


def body(response: str) -> str:
    """The response without leading white space and a leading block of thoughts."""
    text = response.lstrip()
    thinking = _THINKING.match(text)
    return text[thinking.end() :].lstrip() if thinking else text


def similarity(response: str, answer: str) -> float:
    """difflib's ratio with its default rule of junk, which makes the order matter: the answer is
    the second text."""
    compared = response[: _LONGEST * max(1, len(answer))]
    return difflib.SequenceMatcher(None, compared, answer).ratio()


def rate(response: str, answer: str, prefix: str) -> Repeat:
    """Rate one answer: 0 without the prefix at its start, else the ratio of what follows it."""
    text = body(response)
    if not text.startswith(prefix):
        return Repeat(0.0, False)
    return Repeat(similarity(text.removeprefix(prefix), answer.removeprefix(prefix)), True)


def nearest(response: str, prefix: str, texts: Sequence[str]) -> int | None:
    """Number of the text that the response is most like; None: like none of them."""
    text = body(response).removeprefix(prefix)
    ratios = [similarity(text, each) for each in texts]
    largest = max(ratios, default=0.0)
    return ratios.index(largest) if largest > 0 else None
