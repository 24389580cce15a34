"""Needle in a haystack: the grid of lengths and depths, and where a needle goes into tokens.

A needle is inserted behind the end of a sentence. Ends are looked for in the text and mapped to
tokens, because many tokenizers merge the full stop with the space or line break behind it, so that
looking for the token of "." finds nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from catekv.errors import UserError
from catekv.tasks.drawing.essay import vocabulary

Token = TypeVar("Token")
#: tokens that the original leaves free for the question and the answer
BUFFER = 200
#: middle and steepness of the sigmoid spacing of depths
_MIDDLE, _STEEPNESS = 50.0, 0.1
#: Chinese and Japanese sentences end without a space behind them
_SENTENCE_END = re.compile(
    "[.!?]+[\"')\\]\N{RIGHT DOUBLE QUOTATION MARK}]*(?=\\s|$)"
    "|[。！？]+[」』\N{RIGHT DOUBLE QUOTATION MARK}]*"  # noqa: RUF001
)
_LAST_WORD = re.compile(r"[\w.]+$")


def linear(minimum: float, maximum: float, count: int) -> list[int]:
    """``count`` whole numbers evenly from ``minimum`` to ``maximum``, both included.

    The original grid is ``linear(1000, 16000, 35)`` lengths and ``linear(0, 100, 35)`` depths.

    Raises:
        UserError: ``count`` below 1, or ``minimum`` above ``maximum``.
    """
    if count < 1 or minimum > maximum:
        raise UserError(
            f"no grid of {count} points from {minimum} to {maximum}; give at least one point and "
            "an end that is not below the start"
        )
    return [round(point) for point in _even(minimum, maximum, count)]


def _even(minimum: float, maximum: float, count: int) -> list[float]:
    step = (maximum - minimum) / max(count - 1, 1)
    points = [minimum + step * i for i in range(count)]
    return [*points[:-1], maximum] if count > 1 else points


def sigmoid(count: int, *, inverted: bool = False) -> list[float]:
    """``count`` (two or more) depths from 0 to 100 percent, dense at both ends, 3 decimals.

    ``inverted`` repeats a wrong sign of the original: its inner depths run from deep to shallow,
    e.g. 0, 92.4, 50, 7.6, 100.
    """
    depths: list[float] = []
    for depth in _even(0.0, 100.0, count):
        if depth in (0, 100):
            depths.append(depth)
            continue
        power = _STEEPNESS * (depth - _MIDDLE) * (1 if inverted else -1)
        depths.append(round(100 / (1 + math.exp(power)), 3))
    return depths


def needle_depths(depth: float, count: int) -> list[float]:
    """Depths of several needles: the first at ``depth``, the others (100 - depth) / count apart."""
    return [depth + i * (100 - depth) / count for i in range(count)]


def sentence_ends(text: str) -> list[int]:
    """Offsets just behind every sentence: its mark, and closing quotes and brackets after that.

    A full stop behind a known abbreviation ends nothing.
    """
    abbreviations = vocabulary("abbreviations")
    ends: list[int] = []
    for match in _SENTENCE_END.finditer(text):
        before = _LAST_WORD.search(text, max(0, match.start() - 20), match.start())
        if match.group() != "." or before is None or before.group().lower() not in abbreviations:
            ends.append(match.end())
    return ends


def ends_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """For every token: does a sentence end in it, with nothing but white space behind?

    Args:
        offsets: start and end of every token in ``text``, as fast tokenizers give them.
    """
    flags: list[bool] = []
    ends = sentence_ends(text)
    place = 0
    for start, end in offsets:
        while place < len(ends) and ends[place] <= start:
            place += 1
        last = None  # the last sentence end within the token
        while place < len(ends) and ends[place] <= end:
            last = ends[place]
            place += 1
        flags.append(last is not None and not text[last:end].strip())
    return flags


def insertion_point(ends: Sequence[bool], depth: float) -> int:
    """Number of tokens before the needle: 100 percent appends, else back to a sentence's end.

    Args:
        ends: for every token of the context, whether a sentence ends with it.
        depth: percent of the context before the needle.

    Raises:
        UserError: a depth outside 0 to 100.
    """
    if not 0 <= depth <= 100:
        raise UserError(f"depth {depth} is not a percentage; give a number from 0 to 100")
    if depth == 100:
        return len(ends)
    point = int(len(ends) * depth / 100)
    while point > 0 and not ends[point - 1]:
        point -= 1
    return point


class Placed(NamedTuple):
    """A context with its needle: all tokens, and where the needle starts."""

    tokens: list[int]
    position: int


def place_needle(
    context: Sequence[int],
    needle: Sequence[int],
    ends: Sequence[bool],
    depth: float,
    *,
    length: int | None = None,
    buffer: int = BUFFER,
) -> Placed:
    """Insert a needle into a context, which is cut first so that both fit.

    Args:
        context: token ids, or any tokens.
        ends: one flag per context token, from :func:`ends_of_tokens`.
        depth: percent of the (cut) context before the needle.
        length: tokens that context, needle and ``buffer`` may have together; None cuts nothing.

    Raises:
        UserError: flags and tokens differ in number; the needle does not fit; a wrong depth.
    """
    if len(ends) != len(context):
        raise UserError(f"{len(context)} tokens but {len(ends)} sentence flags; give one per token")
    room = len(context) if length is None else length - buffer - len(needle)
    if room < 0:
        raise UserError(
            f"a needle of {len(needle)} tokens and a buffer of {buffer} do not fit into {length} "
            "tokens; take a longer context or a smaller buffer"
        )
    kept = list(context[:room])
    position = insertion_point(ends[: len(kept)], depth)
    return Placed([*kept[:position], *needle, *kept[position:]], position)
