"""A summary's tables for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.columns.edges import edge_notes
from catekv.evaluation.report.gaps import MARK, NOTE
from catekv.evaluation.report.questions import asked
from catekv.evaluation.report.statistics import HOW, LARGE
from catekv.evaluation.report.summary import AVERAGE
from catekv.evaluation.report.told_apart import verdict
from catekv.evaluation.report.untouched import column_name
from catekv.evaluation.report.untouched import warnings as nothing_compressed
from catekv.models.source import short_name


def render(summary: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The tables of a summary: scores per task and method, then one line per method."""
    table = tables.markdown_table if markdown else tables.plain_table
    blocks: list[str] = []
    if markdown:
        blocks.append(f"# {short_name(str(summary['model']))}")
    for title, cells, averages in runs_of(summary):
        blocks.append(("## " if markdown else "") + title)
        families = [row for row in summary["family_averages"] if _same_run(row, cells[0])]
        blocks.append(table(*_score_rows(cells, averages, families)))
        blocks.append(table(*_method_rows(averages, summary["full"])))
        blocks += nothing_compressed(averages)
        blocks += _too_few(averages, summary["full"])
    blocks.append(notes_of(summary))
    return "\n\n".join(blocks) + "\n"


def runs_of(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Title, cells and averages of every length and question mode."""
    runs = dict.fromkeys((row["length"], row["question"]) for row in summary["cells"])
    for run in runs:
        cells, averages = (
            [row for row in summary[part] if (row["length"], row["question"]) == run]
            for part in ("cells", "averages")
        )
        yield title_of(*run), cells, averages


def title_of(length: int, question: str) -> str:
    return f"{f'{length} tokens' if length else 'lengths as in the file'}, {asked(question)}"


def _same_run(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (row["length"], row["question"]) == (other["length"], other["question"])


def _score_rows(
    cells: Sequence[Mapping[str, Any]],
    averages: Sequence[Mapping[str, Any]],
    families: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """A row per task; then averages, of each benchmark alone first where there are several."""
    labels = [row["method"] for row in averages]
    tasks = list(dict.fromkeys(row["task"] for row in cells))
    found = {(row["task"], row["method"]): row for row in [*cells, *averages]}
    names = list(dict.fromkeys(row["family"] for row in families if row["tasks"] > 1))
    several = len({row["family"] for row in families}) > 1
    titles = list(tasks)
    for name in names if several else []:
        titles.append(f"average of {name}")
        own = [row for row in families if row["family"] == name]
        found |= {(titles[-1], row["method"]): row for row in own}
    if len(tasks) > 1:
        titles.append(AVERAGE)
    rows = []
    for title in titles:
        cells_of_row = [found.get((title, label)) for label in labels]
        rows.append([title, *("-" if cell is None else score(cell) for cell in cells_of_row)])
    return ["score x 100", *map(column_name, averages)], rows


def _method_rows(
    averages: Sequence[Mapping[str, Any]], full: str | None
) -> tuple[list[str], list[list[str]]]:
    header = [
        "average",
        *([f"to {full} (95 %)"] if full else []),
        "score (95 %)",
        "strict",
        "to keep",
        "kept",
        "stored MiB",
        "prefill ms",
        "compress ms",
        "ms/token",
        "samples",
        "empty",
        "errors",
    ]
    rows = []
    for row in averages:
        time = row["time"]
        rows.append(
            [
                column_name(row),
                *([with_interval(difference(row), row["difference"])] if full else []),
                with_interval(score(row), row["official"]),
                value(row["strict"]),
                tables.percent(row["asked_share"]),
                tables.percent(row["kept_share"]),
                tables.mebibytes(row["stored_bytes"]),
                tables.milliseconds(time["prefill_seconds"]),
                tables.milliseconds(time["compress_seconds"]),
                tables.milliseconds(time["decode_seconds_per_token"]),
                str(row["count"]),
                str(row["nulls"]),
                str(row["errors"]),
            ]
        )
    return header, rows


def _too_few(averages: Sequence[Mapping[str, Any]], full: str | None) -> list[str]:
    """A sentence about the methods of which the samples do not tell whether they lose."""
    names = [row["method"] for row in averages if verdict(row) == "unknown"]
    if not names:
        return []
    return [
        f"Too few samples to tell from {full}: {', '.join(names)} (the interval of the difference "
        f"holds 0 and reaches beyond {100 * LARGE:g} points); give more --samples."
    ]


def value(estimate: Mapping[str, float] | None) -> str:
    return tables.number(estimate["mean"] if estimate else None)


def score(row: Mapping[str, Any]) -> str:
    """Mean score, marked where it is over other samples than those of other methods."""
    estimate = row["official"]
    return value(estimate) + (MARK if estimate and row["missing"] else "")


def difference(row: Mapping[str, Any]) -> str:
    """Paired difference to the full cache, marked where that lacks some of the samples."""
    estimate = row["difference"]
    marked = estimate and (row["missing"] or row["unpaired"])
    return tables.signed(estimate["mean"] if estimate else None) + (MARK if marked else "")


def interval(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['low']:.1f} .. {estimate['high']:.1f}"


def with_interval(number: str, estimate: Mapping[str, float] | None) -> str:
    """A number with its interval behind it."""
    return number if estimate is None else f"{number} ({interval(estimate)})"


def notes_of(summary: Mapping[str, Any]) -> str:
    own = [name for name in summary["wordings"] if not name.startswith("official")]
    official = [name for name in summary["wordings"] if name.startswith("official")]
    lines = []
    if own:
        lines.append(
            f"Prompts: wording {', '.join(own)} of this project; compare scores within this table, "
            "not with published ones."
        )
    if official:
        lines.append(f"Prompts: {', '.join(official)}, unchanged.")
    if summary["generated"]:
        lines.append(
            f"Data of {', '.join(summary['generated'])}: generated rows of the same shape, not the "
            "benchmark's own; the scores say nothing about that benchmark."
        )
    lines.append(
        "kept: stored tokens / all tokens of the compressed part; to keep: what was to be kept, "
        f"or read; times are medians; empty: answers without text. Intervals: {HOW}."
    )
    options = {label: found.get("options", {}) for label, found in summary["methods"].items()}
    lines += edge_notes(options)
    if summary["largest_batch"] > 1:
        lines.append(
            f"Measured in batches of up to {summary['largest_batch']} samples: times are those of "
            "a whole batch, bytes those of one sample."
        )
    if any(row["missing"] or row["unpaired"] for row in summary["averages"]):
        lines.append(NOTE)
    failed = sum(row["errors"] for row in summary["cells"])
    if failed:
        lines.append(f"{failed} measurements failed; their records in samples.jsonl say why.")
    skipped = sum(row["skipped"] for row in summary["cells"])
    if skipped:
        lines.append(f"{skipped} measurements were left out; their records say why.")
    cut = sum(row["cut"] for row in summary["cells"] if row["method"] == _first(summary))
    if cut:
        lines.append(
            f"{cut} samples had their text cut to fit; their records say by how many tokens."
        )
    return "\n".join(lines)


def _first(summary: Mapping[str, Any]) -> str | None:
    """A method by which samples are counted once."""
    return next(iter(summary["methods"]), None)
