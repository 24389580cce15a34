"""Needle-in-a-haystack results of the original test, as cells for a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_needle_file(path: Path) -> list[dict[str, Any]]:
    """Cells as :func:`~catekv.evaluation.report.cells.needle_cells` makes them; points / 10.

    Raises:
        UserError: unreadable, or not of the original's form.
    """
    from catekv.tasks.families.niah.results import read_results

    grid = read_results(path)
    return [
        {
            "method": path.stem,
            "question": "aware",
            "task": "niah, points of a judge / 10",
            "length": length,
            "depth": depth,
            "score": round(mean, 6),
            "count": count,
        }
        for depth, means, counts in zip(grid.depths, grid.means, grid.counts, strict=True)
        for length, mean, count in zip(grid.lengths, means, counts, strict=True)
        if mean is not None
    ]
