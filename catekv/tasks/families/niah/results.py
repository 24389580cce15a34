"""Result files of the original needle-in-a-haystack test."""

from __future__ import annotations

import os
from typing import Any

from catekv.errors import UserError
from catekv.tasks.families.niah.grid import Grid, grid_of
from catekv.tasks.rows.rows import naming, read_rows

#: the judge of the original gives 1 to 10 points
_POINTS = 10


def read_results(path: str | os.PathLike[str], model: str | None = None) -> Grid:
    """The scores of a result file as a grid of depths and lengths.

    Rows are JSON objects (JSONL or a list) with ``context_length``, ``depth_percent`` and ``score``
    (1, 3, 5, 7 or 10 points of a judging model). Rows without a length are of an older form that
    says nothing of model and length; they are left out. Repeated cells are averaged.

    Args:
        model: only the rows of this ``model``; needed where the file holds several.

    Returns:
        ``lengths`` in tokens, ``depths`` in percent, ``means`` (points / 10, so 0.1 to 1; None
        where a cell is missing) and ``counts``, for the report's heat map.

    Raises:
        UserError: unreadable file, missing field or a score outside 1 to 10 (file and line are
            named), several models, an unknown one, or no row with a length.
    """
    scores: list[tuple[str, int, float, float]] = []
    for place, row in read_rows(path):
        with naming(path, place):
            if row["context_length"] is not None:
                scores.append(_score(row))
    models = sorted({name for name, *_ in scores})
    if not scores:
        raise UserError(f"{path} holds no row with a context_length; no grid can be made of it")
    if model is not None and model not in models:
        raise UserError(f"{path} holds no row of model {model!r}; it has {', '.join(models)}")
    if model is None and len(models) > 1:
        raise UserError(f"{path} holds rows of {', '.join(models)}; choose one with model=")
    return grid_of(
        (length, depth, score) for name, length, depth, score in scores if model in (None, name)
    )


def _score(row: dict[str, Any]) -> tuple[str, int, float, float]:
    points = float(row["score"])
    if not 1 <= points <= _POINTS:
        raise ValueError(f"score {points:g} is not among 1 to {_POINTS} points")
    depth = float(row["depth_percent"])
    if not 0 <= depth <= 100:
        raise ValueError(f"depth_percent {depth:g} is not a percentage")
    return str(row.get("model")), int(row["context_length"]), depth, points / _POINTS
