"""Scores and costs of one length and question mode: tables, intervals, trade-offs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.document import NOTE, WARNING, Block, Figure, Section, Table, Text
from catekv.evaluation.report.frontier import pareto_front
from catekv.evaluation.report.gaps import NOTE as MISSING
from catekv.evaluation.report.plots import Point, intervals, trade_off
from catekv.evaluation.report.styles import Style
from catekv.evaluation.report.summary import AVERAGE
from catekv.evaluation.report.summary_text import difference, score, with_interval
from catekv.evaluation.report.told_apart import memory_share, sentences
from catekv.evaluation.report.untouched import column_name, warnings

Row = Mapping[str, Any]
#: Shares of the full cache that differ by so much are two sizes.
_TWO_SIZES = 0.05


def score_section(
    title: str,
    cells: Sequence[Row],
    averages: Sequence[Row],
    full: str | None,
    style: Mapping[str, Style],
    series: Mapping[str, str],
    stem: str,
) -> Section:
    """One length and question mode.

    Args:
        cells: numbers per task and method. averages: per method over its tasks.
        full: label of full attention, None if it was not measured.
        style: how each method looks in all plots. series: what each is a variant of, or itself.
        stem: beginning of the figures' names.
    """
    section = Section(title)
    tasks = list(dict.fromkeys(row["task"] for row in cells))
    section.blocks.append(_score_table(tasks, cells, averages, full))
    if any(row["missing"] or row["unpaired"] for row in averages):
        section.blocks.append(
            Text(f"{MISSING} Methods that lack whole tasks are not drawn.", WARNING)
        )
    section.blocks += [Text(warning, WARNING) for warning in warnings(averages)]
    told = " ".join(sentences(_of_all_tasks(averages), full))
    section.blocks += [Text(told)] if told else []
    section.blocks += _plots(tasks, averages, full, style, series, stem)
    section.blocks.append(_cost_table(averages))
    if len(tasks) > 1:
        section.blocks.append(_task_table(cells, full))
    return section


def _short(task: str) -> str:
    return task.rpartition("/")[2]


def _column_names(tasks: Sequence[str]) -> list[str]:
    """Short names of tasks, or whole ones where two would be alike."""
    short = [_short(task) for task in tasks]
    taken = {"method", "strict", AVERAGE}
    return [
        task if short.count(name) > 1 or name in taken else name
        for task, name in zip(tasks, short, strict=True)
    ]


def _score_table(
    tasks: Sequence[str], cells: Sequence[Row], averages: Sequence[Row], full: str | None
) -> Table:
    found = {(row["task"], row["method"]): row for row in cells}
    many = len(tasks) > 1
    header = ["method", *([f"to {full} (95 %)"] if full else [])]
    header.append(f"{AVERAGE if many else _short(tasks[0])} (95 %)")
    header += ["strict", *(_column_names(tasks) if many else [])]
    rows = []
    for row in averages:
        cell = [column_name(row)]
        if full:
            cell.append(with_interval(difference(row), row["difference"]))
        cell += [with_interval(score(row), row["official"]), _mean(row["strict"])]
        if many:
            for task in tasks:
                one = found.get((task, row["method"]))
                cell.append(score(one) if one else "-")
        rows.append(cell)
    counts = {row["count"] for row in averages}
    samples = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts, default=0)}"
    caption = f"Scores x 100, {samples} samples per method, in brackets 95 % intervals" + (
        f"; to {full}: paired difference on the same samples" if full else ""
    )
    return Table(caption, header, rows)


def _of_all_tasks(averages: Sequence[Row]) -> list[Row]:
    """The averages over as many tasks as any method has scores of."""
    most = max((row["tasks"] for row in averages), default=0)
    return [row for row in averages if row["tasks"] == most]


def _mean(estimate: Mapping[str, float] | None) -> str:
    return tables.number(estimate["mean"] if estimate else None)


_LONG_NOTE = (
    "; unreadable: share of answers in a box that nothing can compare, which count as wrong; at "
    "limit: share of answers that the limit of tokens ended"
)
_BY_TEXT_NOTE = "; terms were compared as texts, because math-verify (extra math) is not installed"


def _cost_table(averages: Sequence[Row]) -> Table:
    rare = [name for name in ("skipped", "cut") if any(row[name] for row in averages)]
    # long answers: the others end where their task's short allowance does
    long = any("answered" in row["metrics"] for row in averages)
    by_text = any("by_text" in row["metrics"] for row in averages)
    header = [
        "method", "to keep", "kept", "stored MiB", "of full", "prefill ms", "compress ms",
        "question ms", "ms/token", "samples", "empty", "errors", *rare,
        *(("answered", "unreadable", "at limit") if long else ()),
    ]  # fmt: skip
    rows = [
        [
            column_name(row),
            tables.percent(row["asked_share"]),
            tables.percent(row["kept_share"]),
            tables.mebibytes(row["stored_bytes"]),
            tables.percent(memory_share(row)),
            *(
                tables.milliseconds(row["time"][name])
                for name in (
                    "prefill_seconds", "compress_seconds", "question_seconds",
                    "decode_seconds_per_token",
                )
            ),
            *(str(row[name]) for name in ("count", "nulls", "errors", *rare)),
            *(
                (
                    tables.percent(_share(row, "answered")),
                    tables.percent(_share(row, "unreadable")),
                    tables.percent(row["at_limit"]),
                )
                if long else ()
            ),
        ]
        for row in averages
    ]  # fmt: skip
    caption = (
        "Memory and time. to keep: share of tokens that was to be kept, or is read per step; kept: "
        "share stored; times are medians; empty: answers without text"
        + ("; skipped: left out for a recorded reason; cut: shortened to fit" if rare else "")
        + (_LONG_NOTE if long else "")
        + (_BY_TEXT_NOTE if by_text else "")
    )
    return Table(caption, header, rows)


def _share(row: Row, metric: str) -> float | None:
    """A score that counts samples, as their share."""
    percent = row["metrics"].get(metric)
    return None if percent is None else percent / 100


def _task_table(cells: Sequence[Row], full: str | None) -> Table:
    header = ["method", "task", *([f"to {full} (95 %)"] if full else []), "score (95 %)"]
    header += ["strict", "samples", "errors"]
    rows = []
    for row in cells:
        line = [row["method"], row["task"]]
        if full:
            line.append(with_interval(difference(row), row["difference"]))
        line.append(with_interval(score(row), row["official"]))
        rows.append([*line, _mean(row["strict"]), str(row["count"]), str(row["errors"])])
    return Table("Every task with its interval", header, rows, folded=True)


def _plots(
    tasks: Sequence[str],
    averages: Sequence[Row],
    full: str | None,
    style: Mapping[str, Style],
    series: Mapping[str, str],
    stem: str,
) -> list[Block]:
    rows = [row for row in _of_all_tasks(averages) if row["official"] is not None]
    if not rows:
        return []
    what = f"average of {len(tasks)} tasks" if len(tasks) > 1 else tasks[0]
    points = [_point(row, 0.0, series) for row in rows]
    blocks: list[Block] = [
        Figure(
            f"{stem}-scores",
            intervals(points, style, f"Scores of all methods, {what}"),
            f"Mean score and its 95 % interval, {what}.",
        )
    ]
    shares = [(row, memory_share(row)) for row in rows]
    by_memory = [_point(row, 100 * share, series) for row, share in shares if share is not None]
    sizes = [share for row, share in shares if share is not None and row["method"] != full]
    # methods of one size stand above each other and say no more than the picture before
    if sizes and max(sizes) - min(sizes) >= _TWO_SIZES:
        blocks.append(
            Figure(
                f"{stem}-memory",
                trade_off(
                    by_memory, style, f"Score against memory, {what}",
                    "bytes stored, % of the full cache",
                ),
                "Score against memory. Dashed: the Pareto front, methods that no other beats in "
                f"both: {_front(by_memory)}.",
            )
        )  # fmt: skip
    seconds = [(row, row["time"]["decode_seconds_per_token"]) for row in rows]
    by_time = [_point(row, 1000 * value, series) for row, value in seconds if value is not None]
    if len(by_time) > 1:
        untimed = [row["method"] for row, value in seconds if value is None]
        blocks.append(
            Figure(
                f"{stem}-latency",
                trade_off(
                    by_time, style, f"Score against decode time, {what}", "ms per new token, median"
                ),
                "Score against the time of a decode step, as the evaluation ran it: no measurement "
                f"of efficiency. Pareto front: {_front(by_time)}."
                + (f" Not timed: {', '.join(untimed)}." if untimed else ""),
            )
        )
    elif rows:
        blocks.append(
            Text("No decode time per method was measured in these runs (joint decoding).", NOTE)
        )
    return blocks


def _point(row: Row, cost: float, series: Mapping[str, str]) -> Point:
    score = row["official"]
    return Point(
        row["method"], cost, score["mean"], score["low"], score["high"], series[row["method"]]
    )


def _front(points: Sequence[Point]) -> str:
    front = pareto_front([(point.cost, point.score) for point in points])
    return ", ".join(points[position].name for position in front)
