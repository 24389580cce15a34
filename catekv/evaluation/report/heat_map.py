"""Heat maps: values in cells, with their numbers, on a fixed scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from catekv.evaluation.report.colours import DEFAULT_SCALE, ink_on, scale_of
from catekv.evaluation.report.pictures import INK, Picture, drawing, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Cells of at most this many columns are wide enough for a number.
NUMBERED_COLUMNS = 20
_FRAME = "#D55E00"
_SMALL = 11


@dataclass(frozen=True)
class Grid:
    """Values [rows][columns] (None: nothing measured) with the names of rows and columns."""

    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str

    @property
    def is_numbered(self) -> bool:
        """Whether its cells have room for their numbers."""
        return len(self.columns) <= NUMBERED_COLUMNS


@drawing
def heat_map(
    grid: Grid,
    title: str,
    *,
    span: tuple[float, float] = (0.0, 1.0),
    scale: str = DEFAULT_SCALE,
    digits: int = 2,
    line_after: int | None = None,
    line_label: str = "",
    framed: Sequence[tuple[int, int]] = (),
) -> Picture:
    """One picture with a colour bar; the cells are one embedded image, a pixel a cell.

    Args:
        grid: what to show.
        span: values at the ends of the scale, the same for every picture of a kind.
        digits: of the numbers in the cells.
        line_after: a vertical line behind so many columns, e.g. at the trained length.
        framed: cells (row, column) with a frame, e.g. adaptive heads.
    """
    cell, high = (max(36, 7 * digits + 18), 22) if grid.is_numbered else (14, 12)
    left = 30 + max((text_width(name, _SMALL) for name in grid.rows), default=0)
    top, below = (30.0 if line_after is None else 44.0), 76.0
    inner = cell * len(grid.columns)
    width = max(300.0, left + inner + 12, text_width(title, 13) + 4)
    height = top + high * len(grid.rows) + below
    picture = Picture.of(width, height, title)
    picture.figure.text(0, 1 - 14 / height, title, fontsize=13, fontweight="bold")
    axes = picture.axes(left, below, width - left - inner, top)
    values = np.array([[np.nan if v is None else v for v in row] for row in grid.values])
    # where all values are equal they stand in the middle of the scale
    low, greatest = span if span[1] > span[0] else (span[0] - 0.5, span[0] + 0.5)
    look: dict[str, Any] = {
        "cmap": scale_of(scale), "vmin": low, "vmax": greatest,
        "aspect": "auto", "interpolation": "none",
    }  # fmt: skip
    image = axes.imshow(values, **look)
    axes.grid(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            _box(axes, row, column, 0.0, edgecolor=INK, alpha=0.3, linewidth=1, linestyle="--")
        elif grid.is_numbered:
            ink = ink_on(tuple(image.to_rgba(value)))
            words = f"{value:.{digits}f}"
            axes.text(column, row, words, color=ink, fontsize=_SMALL, ha="center",
                      va="center_baseline")  # fmt: skip
    for row, column in framed:
        _box(axes, row, column, 1.5 / cell, 1.5 / high, edgecolor=_FRAME, linewidth=2.5)
    _names(axes, grid, cell)
    if line_after is not None:
        _line(axes, line_after - 0.5, line_label)
    bar = picture.axes(left, 22, width - left - 144, height - 32)
    bar.imshow([np.linspace(low, greatest, 64)], extent=(low, greatest, 0, 1), **look)
    bar.grid(False)
    ends = [f"{v:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{v:.0f}" for v in span]
    bar.set_xticks(span, ends, fontsize=_SMALL)
    bar.set_yticks([])
    return picture


def _box(
    axes: Axes, row: int, column: int, inset: float, inset_high: float = 0.0, **look: Any
) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.5 + inset, row - 0.5 + inset_high)
    axes.add_patch(Rectangle(corner, 1 - 2 * inset, 1 - 2 * inset_high, fill=False, **look))


def _names(axes: Axes, grid: Grid, cell: float) -> None:
    """Names and titles of rows and columns, as many as there is room for."""
    step = 1 if grid.is_numbered or len(grid.rows) <= 20 else 5
    rows = range(0, len(grid.rows), step)
    axes.set_yticks(rows, [grid.rows[row] for row in rows], fontsize=_SMALL)
    widest = max((text_width(name, _SMALL) for name in grid.columns), default=1)
    columns = range(0, len(grid.columns), max(1, -(-int(widest + 6) // int(cell))))
    axes.set_xticks(columns, [grid.columns[column] for column in columns], fontsize=_SMALL)
    axes.set_xlabel(grid.column_title)
    axes.set_ylabel(grid.row_title)


def _line(axes: Axes, at: float, label: str) -> None:
    for colour, width in (("#ffffff", 4), ("#000000", 2)):
        axes.axvline(at, color=colour, linewidth=width, clip_on=False)
    axes.annotate(label, (at, 1), (0, 6), xycoords=("data", "axes fraction"), ha="center",
                  textcoords="offset points", fontsize=_SMALL)  # fmt: skip
