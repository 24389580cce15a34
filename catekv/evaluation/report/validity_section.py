"""Columns that test the tasks and not a method: oracle, empty, random and no-context answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.document import NOTE, Section, Table, Text
from catekv.evaluation.report.questions import question_word

_PARTS = ("cells", "averages", "family_averages", "needles", "buckets", "choices", "turns")


def is_check(method: Mapping[str, Any]) -> bool:
    """Whether an entry of a manifest's methods is one of these columns."""
    return str(method.get("name", "")).startswith("sanity ")


def without_checks(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of the methods alone."""
    methods = {label: m for label, m in summary["methods"].items() if not is_check(m)}
    kept = {
        name: [row for row in summary.get(name, []) if row["method"] in methods] for name in _PARTS
    }
    return {**summary, **kept, "methods": methods}


def validity_section(summary: Mapping[str, Any]) -> Section | None:
    """What the tasks score for answers that need no method; None if that was not measured."""
    labels = [label for label, method in summary["methods"].items() if is_check(method)]
    rows = [row for row in summary["cells"] if row["method"] in labels]
    if not rows:
        return None
    lines = []
    for task, length, question in dict.fromkeys(
        (row["task"], row["length"], row["question"]) for row in rows
    ):
        scores = {
            row["method"]: row["official"]
            for row in rows
            if (row["task"], row["length"], row["question"]) == (task, length, question)
        }
        cells = [scores.get(label) for label in labels]
        lines.append(
            [
                task,
                str(length or "as in the file"),
                question_word(question),
                *(tables.number(cell["mean"] if cell else None) for cell in cells),
            ]
        )
    note = (
        "The references themselves must score 100 and an empty answer 0. Another sample's answer "
        "and the model without the context show what a score is worth that needs no reading."
    )
    header = ["task", "tokens", "question", *labels]
    return Section(
        "Validity of the tasks", [Text(note, NOTE), Table("Scores x 100", header, lines)]
    )
