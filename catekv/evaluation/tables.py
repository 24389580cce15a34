"""Rows of cells as plain text for a terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence

MIB = 1024**2


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces; the first is left-aligned, the others right-aligned."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "-" * len(max(lines, key=len)))
    return "\n".join(lines)


def markdown_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    padded: bool = False,
) -> str:
    """A Markdown table.

    Args:
        left: columns that are left-aligned, negative ones counted from the last; the others are
            right-aligned.
        padded: fill cells with spaces, for tables that are read on a terminal too.
    """
    to_left = {column % len(header) for column in left}
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) if padded else 0 for column in zip(*lines, strict=True)]
    lines = [
        [
            cell.ljust(width) if column in to_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = [
        "-" * max(3, width) if column in to_left else "-" * max(3, width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values with a header line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def number(value: float | None, digits: int = 1) -> str:
    """A number with fixed digits, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign, or a dash."""
    return "-" if value is None else f"{value:+.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}%"


def mebibytes(value: float | None) -> str:
    """Bytes in MiB, or a dash."""
    return "-" if value is None else f"{value / MIB:.2f}"


def milliseconds(value: float | None) -> str:
    """Seconds in ms, or a dash."""
    return "-" if value is None else f"{1000 * value:.1f}"
