"""Needle in a haystack: a heat map per method, depths down and lengths across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation.report.cells import grid_axes
from catekv.evaluation.report.document import NOTE, Figure, Section, Table, Text
from catekv.evaluation.report.heat_map import Grid, heat_map
from catekv.evaluation.report.names import file_stem
from catekv.evaluation.report.plots import short_length

_NOTE = (
    "Needle in a haystack: rows are depths of the needle in per cent of the text, columns prompt "
    "lengths in tokens; a cell is the mean score over its samples, 0 to 1 on the same scale in "
    "every picture. Dashed cells were not measured."
)


def needle_section(
    cells: Sequence[Mapping[str, Any]], stem: str, scale: str, trained: int | None
) -> Section | None:
    """Heat maps of the cells of :func:`~catekv.evaluation.report.cells.needle_cells`.

    Args:
        stem: beginning of the figures' names.
        scale: name of the colour scale.
        trained: tokens of the longest texts the model was trained on; a line stands behind the
            columns up to it. None: unknown.
    """
    if not cells:
        return None
    depths, lengths = grid_axes(cells)
    section = Section("Needle in a haystack", [Text(_NOTE, NOTE)])
    kinds = dict.fromkeys((c["method"], c["question"], c["task"]) for c in cells)
    questions = {question for _, question, _ in kinds}
    for method, question, task in kinds:
        own = [
            c for c in cells if (c["method"], c["question"], c["task"]) == (method, question, task)
        ]
        found = {(float(c["depth"]), int(c["length"])): c for c in own}
        values = [
            [found[d, n]["score"] if (d, n) in found else None for n in lengths] for d in depths
        ]
        count = sum(c["count"] for c in own)
        mean = sum(c["score"] * c["count"] for c in own) / count
        kind = "" if len(questions) == 1 else f", {question} question"
        title = f"{method}{kind}: mean {mean:.3f}"
        grid = Grid(
            values,
            [f"{depth:g}" for depth in depths],
            [short_length(length) for length in lengths],
            "depth %",
            "prompt tokens",
        )
        place = _line_after(lengths, trained)
        picture = heat_map(
            grid,
            title,
            scale=scale,
            line_after=place,
            line_label="" if trained is None else f"trained: {short_length(trained)}",
        )
        rows = [
            [f"{depth:g}", *("" if value is None else f"{value:g}" for value in line)]
            for depth, line in zip(depths, values, strict=True)
        ]
        caption = f"{title} over {count} samples ({task})"
        if trained is not None and place is None:
            caption += f"; the model was trained on up to {trained} tokens"
        header = ["depth", *(str(length) for length in lengths)]
        name = f"{stem}-niah-{file_stem(method)}-{question}"
        section.blocks.append(Figure(name, picture, f"{caption}.", Table(caption, header, rows)))
    return section


def _line_after(lengths: Sequence[int], trained: int | None) -> int | None:
    """Columns up to the trained length; None if it lies outside the picture."""
    if trained is None or not lengths[0] <= trained < lengths[-1]:
        return None
    return sum(length <= trained for length in lengths)
