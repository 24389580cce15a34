"""Scores over prompt lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.document import NOTE, Figure, Section, Table, Text
from catekv.evaluation.report.plots import curves, short_length
from catekv.evaluation.report.questions import asked
from catekv.evaluation.report.styles import Style


def curve_section(
    summary: Mapping[str, Any], style: Mapping[str, Style], stem: str
) -> Section | None:
    """Mean score of every method at every length, per question mode; None with one length.

    Only tasks that a question mode has at all lengths are averaged, and a method has a point only
    where it has all of them: a line never changes because its tasks do.
    """
    section = Section("Scores over prompt lengths")
    for question in dict.fromkeys(row["question"] for row in summary["cells"]):
        cells = [r for r in summary["cells"] if r["question"] == question and r["length"]]
        lengths = sorted({row["length"] for row in cells})
        if len(lengths) < 2:
            continue
        tasks = _common_tasks(cells, lengths)
        if not tasks:
            section.blocks.append(
                Text(f"No task was measured at all lengths ({asked(question)}).", NOTE)
            )
            continue
        series = _series(cells, tasks, lengths)
        what = f"{len(tasks)} tasks" if len(tasks) > 1 else next(iter(tasks))
        caption = f"Mean score x 100 of {what} over prompt lengths, {asked(question)}"
        rows = [
            [name, *(tables.number(dict(line).get(length)) for length in lengths)]
            for name, line in series.items()
        ]
        header = ["method", *(short_length(length) for length in lengths)]
        section.blocks.append(
            Figure(
                f"{stem}-lengths-{question}",
                curves(series, style, caption, "score x 100", y_range=(0, 100)),
                f"{caption}. Tasks: {', '.join(sorted(tasks))}.",
                Table(caption, header, rows),
            )
        )
    return None if section.is_empty else section


def _common_tasks(cells: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> set[str]:
    per_length = [{row["task"] for row in cells if row["length"] == length} for length in lengths]
    return set.intersection(*per_length)


def _series(
    cells: Sequence[Mapping[str, Any]], tasks: set[str], lengths: Sequence[int]
) -> dict[str, list[tuple[float, float]]]:
    found = {
        (row["method"], row["length"], row["task"]): row["official"]["mean"]
        for row in cells
        if row["official"] is not None
    }
    series: dict[str, list[tuple[float, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in cells):
        for length in lengths:
            values = [found.get((method, length, task)) for task in tasks]
            known = [value for value in values if value is not None]
            if len(known) == len(tasks):
                series.setdefault(method, []).append((float(length), sum(known) / len(known)))
    return series
