"""Grids of depths as people write them down, and the order in which samples walk through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from catekv.errors import UserError
from catekv.tasks.drawing.needle_grid import linear, sigmoid

#: depths of a grid by name; even ones are whole percentages, so that more than 101 repeat
_MOST = 1000
Depths: TypeAlias = "int | float | str | Sequence[float]"
_FORMS = (
    "use a number of depths, 'linear:0:100:10', 'sigmoid:11', or the depths themselves in percent, "
    "e.g. '0,50,100'"
)


def read_depths(given: Depths) -> tuple[float, ...]:
    """The depths of a grid, in percent of the context and in the order of the samples.

    Args:
        given: a number of evenly spaced depths (35 is the original grid); ``linear:FIRST:LAST:N``;
            ``sigmoid:N``, dense at both ends; or the depths themselves, as a sequence or a text
            with commas.

    Returns:
        Depths that are listed stay in their order. A grid is walked from coarse to fine (first its
        ends, then its middle), so that a run with fewer samples than depths covers it evenly.

    Raises:
        UserError: anything else, depths outside 0 to 100, or one that is there twice.
    """
    if isinstance(given, bool):
        raise UserError(f"depths={given!r}; {_FORMS}")
    if isinstance(given, int):
        return _checked(given, _coarse_to_fine(_even(given)) if _few(given) else [])
    if isinstance(given, float):
        return _checked(given, [given])
    if isinstance(given, str):
        return _checked(given, _written(given))
    if not isinstance(given, Sequence):
        raise UserError(f"depths={given!r}; {_FORMS}")
    return _checked(given, [_number(item, given) for item in given])


def _few(count: int) -> bool:
    """Whether so many depths can differ: there is no need to list millions to refuse them."""
    return count <= _MOST


def _even(count: int) -> list[float]:
    return [50.0] if count == 1 else [float(depth) for depth in linear(0, 100, count)]


def _written(text: str) -> list[float]:
    name, *parts = text.split(":")
    values = [_number(part, text) for part in parts]
    if not all(map(math.isfinite, values)):
        raise UserError(f"depths={text!r}; {_FORMS}")
    whole = bool(values) and values[-1] == int(values[-1]) and _few(int(values[-1]))
    if name == "linear" and len(values) == 3 and whole:
        grid = linear(values[0], values[1], int(values[2]))
        return _coarse_to_fine([float(depth) for depth in grid])
    if name == "sigmoid" and len(values) == 1 and whole and values[0] >= 2:
        return _coarse_to_fine(sigmoid(int(values[0])))
    if parts:
        raise UserError(f"depths={text!r}; {_FORMS}")
    return [_number(item, text) for item in text.split(",")]


def _number(item: object, given: object) -> float:
    try:
        return float(item)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"depths={given!r}; {_FORMS}") from None


def _checked(given: object, depths: list[float]) -> tuple[float, ...]:
    # the comparison is false for what is no number
    if not depths or not all(0 <= depth <= 100 for depth in depths):
        raise UserError(f"depths={given!r}; depths are percentages from 0 to 100: {_FORMS}")
    if len(set(depths)) < len(depths):
        raise UserError(f"depths={given!r} holds a depth twice; give every depth once")
    return tuple(depths)


def _coarse_to_fine(depths: list[float]) -> list[float]:
    """Both ends, then again and again the middle of the widest gap, the shallower one of equals."""
    if len(depths) < 3:
        return depths
    order = [0, len(depths) - 1]
    gaps = [(0, len(depths) - 1)]
    while len(order) < len(depths):
        low, high = max(gaps, key=lambda gap: gap[1] - gap[0])
        middle = (low + high) // 2
        gaps.remove((low, high))
        gaps += [(low, middle), (middle, high)]
        order.append(middle)
    return [depths[place] for place in order]


def cell(index: int, depths: Sequence[float], rounds: int) -> tuple[float, int]:
    """Depth and round of sample ``index``.

    The grid holds ``rounds`` samples of one depth, then of the next. Samples beyond it are further
    rounds, one depth after the other.
    """
    size = len(depths) * rounds
    if index < size:
        return depths[index // rounds], index % rounds
    beyond = index - size
    return depths[beyond % len(depths)], rounds + beyond // len(depths)
