"""Numbers that papers printed beside ours, where model, task, length and method are the same.

The files in ``published/`` hold what the papers' tables say, with their source; nothing in them was
measured here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.document import NOTE, WARNING, Section, Table, Text
from catekv.evaluation.report.plots import short_length
from catekv.evaluation.report.questions import question_word
from catekv.evaluation.report.summary import AVERAGE
from catekv.models.source import short_name

FOLDER = Path(__file__).parent / "published"
_MODELS = "models.json"
#: How far our share of tokens may lie from a printed one, which is rounded, to be the same cell.
_SHARE = 0.02
_SMALL_SHARE = 0.005


@functools.cache
def published_tables() -> tuple[dict[str, Any], ...]:
    """All tables: ``source``, ``metric``, ``questions``, ``tasks`` and ``rows``."""
    files = sorted(path for path in FOLDER.glob("*.json") if path.name != _MODELS)
    return tuple(json.loads(path.read_text()) for path in files)


@functools.cache
def _aliases() -> dict[str, str]:
    """Name of a model's folder or repository, in lower case, to the paper's name for it."""
    content: dict[str, list[str]] = json.loads((FOLDER / _MODELS).read_text())
    return {alias.lower(): paper for paper, names in content.items() for alias in (*names, paper)}


def paper_name(model: str) -> str | None:
    """What papers call a model, from the last part of its folder's or repository's name."""
    return _aliases().get(short_name(model).lower())


def published_section(summary: Mapping[str, Any]) -> Section | None:
    """A table per paper with cells that the summary has too; None if there are none."""
    section = Section("Beside published numbers")
    model = paper_name(str(summary.get("model")))
    if model is None:
        return None
    for table in published_tables():
        lines = list(_lines(table, model, summary))
        if not lines:
            continue
        header = ["method", "task", "tokens", "question", "ours", "95 % interval"]
        header += ["theirs", "ours - theirs"]
        caption = (
            f"Theirs: {table['source']}; model there: {model}. Theirs are printed numbers, not "
            "measured here"
        )
        section.blocks.append(Table(caption, header, lines, theirs=frozenset({6})))
    if not section.blocks:
        return None
    own = [name for name in summary.get("wordings", []) if not name.startswith("official")]
    if own:
        section.blocks.append(
            Text(
                f"Our prompts ({', '.join(own)}) have wordings and contexts of their own: a "
                "difference to a printed number is not the method's alone. The comparison that "
                "holds is the one to full attention, within our tables.",
                WARNING,
            )
        )
    section.blocks.append(
        Text(
            "Shown where model, task, length, method and its printed options or share of tokens "
            "agree. Where a paper scored in its own way, ours is scored in that way too.",
            NOTE,
        )
    )
    return section


def _lines(table: Mapping[str, Any], model: str, summary: Mapping[str, Any]) -> Iterator[list[str]]:
    methods = summary["methods"]
    for theirs in table["rows"]:
        if theirs["model"] != model:
            continue
        for row in _candidates(table, summary):
            same = theirs["length"] in (None, row["length"])
            task = row["task"]
            if not same or task not in theirs["scores"]:
                continue
            if not _same_method(theirs, methods.get(row["method"], {}), row):
                continue
            ours, spread = _ours(row, table["metric"])
            if ours is None:
                continue
            printed = theirs["scores"][task]
            yield [
                f"{row['method']} ({theirs['shown']}{_share_text(theirs)})",
                task,
                short_length(row["length"]) if row["length"] else "as in the file",
                question_word(row["question"]),
                tables.number(ours),
                spread,
                f"{printed:g}",
                tables.signed(ours - printed),
            ]


def _share_text(theirs: Mapping[str, Any]) -> str:
    share = theirs["share"]
    return "" if share is None else f" {100 * share:g}%"


def _candidates(table: Mapping[str, Any], summary: Mapping[str, Any]) -> Sequence[Any]:
    """Our cells that a table may hold, averages only over exactly its tasks."""
    wanted = set(table["tasks"])
    rows = [row for row in summary["cells"] if row["question"] in table["questions"]]
    averages = []
    for row in summary["averages"]:
        there = {
            cell["task"]
            for cell in rows
            if (cell["length"], cell["question"], cell["method"])
            == (row["length"], row["question"], row["method"])
            and cell["official"] is not None
        }
        if there == wanted:
            averages.append({**row, "task": AVERAGE})
    return [*rows, *averages]


def _same_method(
    theirs: Mapping[str, Any], method: Mapping[str, Any], row: Mapping[str, Any]
) -> bool:
    if method.get("name") != theirs["method"]:
        return False
    options = method.get("options", {})
    if any(options.get(name, value) != value for name, value in theirs["options"].items()):
        return False
    share = theirs["share"]
    if share is None or theirs["method"] == "full":
        return True
    ours = row["asked_share"] if row["asked_share"] is not None else row["kept_share"]
    return ours is not None and abs(ours - share) <= (_SHARE if share >= 0.1 else _SMALL_SHARE)


def _ours(row: Mapping[str, Any], metric: str) -> tuple[float | None, str]:
    """Our score in the table's way of scoring, with an interval where we have one."""
    if metric == "official":
        estimate = row["official"]
        if estimate is None:
            return None, "-"
        return estimate["mean"], f"{estimate['low']:.1f} .. {estimate['high']:.1f}"
    return row["metrics"].get(metric), "-"
