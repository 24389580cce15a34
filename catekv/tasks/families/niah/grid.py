"""Mean scores over depth and length: what a heat map of a needle test shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Mean scores by depth (rows) and length (columns).

    Attributes:
        lengths: tokens, ascending.
        depths: percent of the text before the needle, ascending.
        means: ``means[row][column]`` in [0, 1]; None where nothing was measured.
        counts: samples behind every mean.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    means: tuple[tuple[float | None, ...], ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def mean(self) -> float:
        """Mean over the measured cells, every cell with the same weight, as in the map's title."""
        values = [value for row in self.means for value in row if value is not None]
        return sum(values) / len(values)


def grid_of(scores: Iterable[tuple[int, float, float]]) -> Grid:
    """A grid from (length in tokens, depth in percent, score in [0, 1]); repeats are averaged.

    Raises:
        ValueError: there is no score.
    """
    cells: dict[tuple[float, int], list[float]] = defaultdict(list)
    for length, depth, score in scores:
        cells[depth, length].append(score)
    if not cells:
        raise ValueError("a grid needs at least one score")
    depths = tuple(sorted({depth for depth, _ in cells}))
    lengths = tuple(sorted({length for _, length in cells}))
    found = [[cells.get((depth, length), []) for length in lengths] for depth in depths]
    return Grid(
        lengths,
        depths,
        tuple(tuple(sum(cell) / len(cell) if cell else None for cell in row) for row in found),
        tuple(tuple(map(len, row)) for row in found),
    )
