"""Heat maps: values in cells, with their numbers, on a fixed scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catekv.evaluation.report.colours import DEFAULT_SCALE, colour_of, hexadecimal, ink_on
from catekv.evaluation.report.svg import drawing, element, text, text_width

#: Cells of at most this many columns are wide enough for a number.
NUMBERED_COLUMNS = 20


@dataclass(frozen=True)
class Grid:
    """Values [rows][columns] (None: nothing measured) with the names of rows and columns."""

    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str


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
) -> str:
    """One picture with a colour bar.

    Args:
        grid: what to show.
        span: values at the ends of the scale, the same for every picture of a kind.
        digits: of the numbers in the cells.
        line_after: a vertical line behind so many columns, e.g. at the trained length.
        framed: cells (row, column) with a frame, e.g. adaptive heads.
    """
    count = len(grid.columns)
    numbered = count <= NUMBERED_COLUMNS
    cell = max(36, 7 * digits + 18) if numbered else 14
    high = 22 if numbered else 12
    left = 30 + max((text_width(name, 11) for name in grid.rows), default=0)
    top = 44.0 if line_after is not None else 30.0
    width = max(300.0, left + cell * count + 12)
    floor = top + high * len(grid.rows)
    parts = [text(0, 14, title, font_size=13, font_weight="bold")]
    width = max(width, text_width(title, 13) + 4)
    low, top_value = span
    for row, values in enumerate(grid.values):
        for column, value in enumerate(values):
            x, y = left + cell * column, top + high * row
            parts.append(_cell(x, y, cell, high, value, low, top_value, scale))
            if numbered and value is not None:
                ink = ink_on(colour_of(_share(value, low, top_value), scale))
                number = element(
                    "text", f"{value:.{digits}f}", x=x + cell / 2, y=y + high / 2 + 4,
                    text_anchor="middle", fill=ink, font_size=11,
                )  # fmt: skip
                parts.append(number)
    parts += [
        element(
            "rect", x=left + cell * column + 1.5, y=top + high * row + 1.5, width=cell - 3,
            height=high - 3, fill="none", stroke="#D55E00", stroke_width=2.5,
        )
        for row, column in framed
    ]  # fmt: skip
    step = 1 if numbered or len(grid.rows) <= 20 else 5
    for row, name in enumerate(grid.rows):
        if row % step == 0:
            y = top + high * (row + 0.5) + 4
            parts.append(text(left - 6, y, name, text_anchor="end", font_size=11))
    widest = max((text_width(name, 11) for name in grid.columns), default=1)
    stride = max(1, -(-int(widest + 6) // cell))
    for column, name in enumerate(grid.columns):
        if column % stride == 0:
            x = left + cell * (column + 0.5)
            parts.append(text(x, floor + 15, name, text_anchor="middle", font_size=11))
    if line_after is not None:
        parts += _line(left + cell * line_after, top, floor, line_label)
    parts.append(text(left + cell * count / 2, floor + 32, grid.column_title, text_anchor="middle"))
    turned = f"translate(12 {(top + floor) / 2:.1f}) rotate(-90)"
    parts.append(element("g", text(0, 0, grid.row_title, text_anchor="middle"), transform=turned))
    parts += _bar(left, floor + 44, span, scale, digits)
    return drawing(width, floor + 76, title, parts)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _cell(
    x: float, y: float, width: float, height: float, value: float | None, low: float, high: float,
    scale: str,
) -> str:  # fmt: skip
    if value is None:
        return element(
            "rect", x=x, y=y, width=width, height=height, fill="none", stroke="currentColor",
            stroke_opacity="0.3", stroke_dasharray="2 2",
        )  # fmt: skip
    fill = hexadecimal(colour_of(_share(value, low, high), scale))
    return element("rect", x=x, y=y, width=width, height=height, fill=fill)


def _line(x: float, top: float, floor: float, label: str) -> list[str]:
    lines = [
        element(
            "line", x1=x, x2=x, y1=top - 8, y2=floor + 4, stroke=colour, stroke_width=width
        )
        for colour, width in (("#ffffff", 4), ("#000000", 2))
    ]  # fmt: skip
    return [*lines, text(x, top - 12, label, text_anchor="middle", font_size=11)]


def _bar(left: float, top: float, span: tuple[float, float], scale: str, digits: int) -> list[str]:
    """What the colours mean."""
    steps, width = 24, 144
    parts = [
        element(
            "rect", x=left + number * width / steps, y=top, width=width / steps + 0.5, height=10,
            fill=hexadecimal(colour_of((number + 0.5) / steps, scale)),
        )
        for number in range(steps)
    ]  # fmt: skip
    for share, value in ((0.0, span[0]), (1.0, span[1])):
        label = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
        parts.append(
            text(left + share * width, top + 24, label, text_anchor="middle", font_size=11)
        )
    return parts
