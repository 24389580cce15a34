"""Figures of matplotlib as files, with titles that fit."""

from __future__ import annotations

import io
import os
import textwrap
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.files import write_atomically

#: Points of an inch, and width of a letter of a figure's font as a share of its size.
_POINTS = 72
_LETTER = 0.58


def write_figure(path: str | os.PathLike[str], figure: Any, dpi: int = 120) -> Path:
    """Write a figure of matplotlib in the format that the name ends with (default: PNG).

    Titles too long for their figure or their panel go on in further lines.
    """
    fit_titles(figure)
    data = io.BytesIO()
    try:
        figure.savefig(data, format=Path(path).suffix[1:].lower() or "png", dpi=dpi)
    except ValueError as error:
        raise UserError(f"cannot draw {path} ({error}); give a PNG or SVG file") from error
    return write_atomically(path, data.getvalue())


def fit_titles(figure: Any) -> None:
    """Break the titles of a figure and of its panels where their place ends."""
    width = figure.get_figwidth() * _POINTS
    placed = [(figure._suptitle, width)] if figure._suptitle is not None else []
    for axes in figure.axes:
        grid = axes.get_subplotspec()
        placed.append((axes.title, width / (1 if grid is None else grid.get_gridspec().ncols)))
    for title, room in placed:
        letters = max(1, int(room / (_LETTER * title.get_fontsize())))
        lines = title.get_text().splitlines()
        title.set_text("\n".join(textwrap.fill(line, letters) for line in lines))
