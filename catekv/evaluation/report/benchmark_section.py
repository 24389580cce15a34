"""Averages as the benchmarks define them: RULER's effective length, LongBench's categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.document import NOTE, WARNING, Block, Section, Table, Text
from catekv.evaluation.report.plots import short_length
from catekv.evaluation.report.questions import asked, question_word
from catekv.tasks.families.ruler.averages import (
    EFFECTIVE,
    effective_length,
    mean_of_tasks,
    weighted_averages,
)
from catekv.tasks.families.ruler.building import PREFIX
from catekv.tasks.families.ruler.tasks import RULER


def benchmark_section(summary: Mapping[str, Any]) -> Section | None:
    """Tables of the benchmarks that a summary has tasks of; None if it has none."""
    section = Section("Benchmark averages")
    for question in dict.fromkeys(row["question"] for row in summary["cells"]):
        own = [row for row in summary["cells"] if row["question"] == question]
        section.blocks += _ruler(own, question) + _longbench(own, question)
    section.blocks += _even(summary.get("buckets", []))
    section.blocks += _choices(summary.get("choices", []))
    section.blocks += _turns(summary.get("turns", []))
    return None if section.is_empty else section


def _ruler(cells: Sequence[Mapping[str, Any]], question: str) -> list[Block]:
    own = [row for row in cells if row["task"].startswith(PREFIX) and row["official"]]
    if not own:
        return []
    lengths = sorted({row["length"] for row in own})
    tasks = {row["task"] for row in own}
    whole_set = tasks == {PREFIX + name for name in RULER}
    if not whole_set and (len(lengths) == 1 or len(tasks) < len(RULER) / 2):
        return []  # the tables of scores say it already, and it is no average of RULER
    rows = []
    for method in dict.fromkeys(row["method"] for row in own):
        means: dict[int, float] = {}
        for length in lengths:
            values = {
                row["task"]: row["official"]["mean"]
                for row in own
                if (row["method"], row["length"]) == (method, length)
            }
            if len(values) == len(tasks):
                means[length] = mean_of_tasks(values)
        whole = len(means) == len(lengths)
        weighted = weighted_averages([means[n] for n in lengths]) if whole else (None, None)
        best = effective_length(means)
        rows.append(
            [
                method,
                *(tables.number(means.get(length)) for length in lengths),
                "-" if best is None else short_length(best),
                tables.number(weighted[0]),
                tables.number(weighted[1]),
            ]
        )
    header = ["method", *(short_length(n) for n in lengths), "effective", "wAvg(inc)", "wAvg(dec)"]
    caption = (
        f"RULER, mean of {len(tasks)} tasks per length, {asked(question)}; effective: greatest "
        f"length with a mean of at least {EFFECTIVE}"
    )
    blocks: list[Block] = [Table(caption, header, rows)]
    if not whole_set:
        blocks.append(
            Text(
                f"{len(tasks)} tasks here, not the {len(RULER)} of RULER: averages and effective "
                "lengths are not RULER's.",
                WARNING,
            )
        )
    return blocks


def _longbench(cells: Sequence[Mapping[str, Any]], question: str) -> list[Block]:
    from catekv.tasks.metrics.longbench_tables import averages

    blocks: list[Block] = []
    own = [row for row in cells if row["task"].startswith("longbench/") and row["official"]]
    for length in sorted({row["length"] for row in own}):
        part = [row for row in own if row["length"] == length]
        for language in ("english", "chinese"):
            rows, names, present, of = [], [], 0, 0
            for method in dict.fromkeys(row["method"] for row in part):
                scores = {
                    row["task"].removeprefix("longbench/"): row["official"]["mean"]
                    for row in part
                    if row["method"] == method
                }
                table = averages(scores, language)
                names = list(table)
                present, of = max(present, table["tasks"].number), table["tasks"].of
                rows.append(
                    [
                        method,
                        *(
                            tables.number(mean.value, 2)
                            + ("" if mean.number in (0, mean.of) else f" ({mean.number}/{mean.of})")
                            for mean in table.values()
                        ),
                    ]
                )
            if present:
                limit = f"at most {length} tokens" if length else "whole texts"
                caption = (
                    f"LongBench, {language} tasks, {limit}, {asked(question)}: means per "
                    f"category, over the {of} tasks, and over the categories; in brackets how many "
                    "tasks were measured where some are missing"
                )
                blocks.append(Table(caption, ["method", *names], rows))
    return blocks


def _even(buckets: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not buckets:
        return []
    names = list(dict.fromkeys(cell["bucket"] for cell in buckets))
    rows = []
    places = [(cell["method"], cell["question"], cell["length"]) for cell in buckets]
    for place in dict.fromkeys(places):
        method, question, length = place
        own = {
            cell["bucket"]: cell
            for cell, there in zip(buckets, places, strict=True)
            if there == place
        }
        rows.append(
            [
                f"{method}, {question_word(question)}",
                short_length(length) if length else "whole texts",
                *(
                    f"{tables.number(own[name]['score'], 2)} (n {own[name]['count']})"
                    for name in names
                ),
            ]
        )
    caption = "LongBench-E: mean over tasks of the scores per bucket of lengths (words, n samples)"
    return [
        Table(caption, ["method", "limit", *names], rows),
        Text("A bucket without samples has no score.", NOTE),
    ]


def _choices(cells: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not cells:
        return []
    names = list(cells[0]["scores"])
    rows = [
        [
            f"{cell['method']}, {question_word(cell['question'])}",
            short_length(cell["length"]) if cell["length"] else "whole texts",
            *(
                f"{tables.number(cell['scores'][name])} (n {cell['counts'][name]})"
                for name in names
            ),
            tables.number(cell["truncated"]),
        ]
        for cell in cells
    ]
    blocks: list[Block] = [
        Table(
            "LongBench v2: % right per group (n samples), and % of samples whose text was cut",
            ["method", "limit", *names, "cut %"],
            rows,
        )
    ]
    if any((cell["truncated"] or 0) > 50 for cell in cells):
        blocks.append(
            Text("Most texts were cut: such a table says little about compression.", WARNING)
        )
    return blocks


def _turns(cells: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not cells:
        return []
    turns = sorted({cell["turn"] for cell in cells})
    places: dict[tuple[str, ...], dict[int, str]] = {}
    for cell in cells:
        length = short_length(cell["length"]) if cell["length"] else "whole texts"
        place = (cell["method"], cell["task"], length, question_word(cell["question"]))
        value = f"{tables.number(cell['score'])} (n {cell['count']})"
        places.setdefault(place, {})[cell["turn"]] = value
    rows = [[*place, *(own.get(turn, "-") for turn in turns)] for place, own in places.items()]
    header = ["method", "task", "limit", "question", *(f"turn {turn}" for turn in turns)]
    return [Table("Score by turn, one compressed context for all of a session", header, rows)]
