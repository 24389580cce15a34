"""From records to summary files and the table on the screen. No model is needed."""

from __future__ import annotations

import dataclasses
import json
import statistics as standard
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation import html_report, tables
from catekv.evaluation.records import Record, RunDirectory, write_text
from catekv.evaluation.settings import stable_hash
from catekv.evaluation.statistics import (
    Estimate,
    bootstrap_average,
    paired_difference,
)

AVERAGE = "average"
_TIMES = ("prefill_seconds", "compress_seconds", "question_seconds", "decode_seconds_per_token")


def summarise(records: Iterable[Record], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a run as plain values.

    Scores are means x 100 with bootstrap 95 % intervals over the samples; ``difference`` is the
    paired difference to the full cache on the same samples. ``time`` holds medians. Everything but
    ``time`` and ``peak_bytes`` is the same however often the run was interrupted.

    ``metrics`` are the means of the other scores, e.g. ``catekv``, the score that the CateKV and
    ShadowKV papers report.

    Args:
        records: merged records; those of methods the manifest does not name are left out.
        manifest: of the run directory; says which label is the full cache.
    """
    methods: Mapping[str, Any] = manifest.get("methods", {})
    used = [
        record
        for record in records
        if record.method in methods and methods[record.method]["hash"] == record.method_hash
    ]
    full = next((label for label, method in methods.items() if method["name"] == "full"), None)
    groups: dict[tuple[str, int, str], dict[str, list[Record]]] = {}
    for record in used:
        cell = groups.setdefault((record.task, record.length, record.question), {})
        cell.setdefault(record.method, []).append(record)
    order = _order(manifest)
    cells: list[dict[str, Any]] = []
    by_run: dict[tuple[int, str], dict[str, dict[str, list[Record]]]] = {}
    for (task, length, question), columns in sorted(groups.items(), key=lambda g: order(*g[0])):
        for label in methods:
            if label not in columns:
                continue
            reference = columns.get(full) if full is not None and full != label else None
            cells.append(
                {
                    "task": task,
                    "length": length,
                    "question": question,
                    "method": label,
                    **_numbers({task: columns[label]}, {task: reference or []}),
                }
            )
            by_run.setdefault((length, question), {}).setdefault(label, {})[task] = columns[label]
    averages = []
    for (length, question), per_method in by_run.items():
        for label, per_task in per_method.items():
            reference_tasks = per_method.get(full, {}) if full is not None and full != label else {}
            averages.append(
                {
                    "task": AVERAGE,
                    "length": length,
                    "question": question,
                    "method": label,
                    "tasks": len(per_task),
                    **_numbers(per_task, reference_tasks),
                }
            )
    return {
        "model": manifest.get("model"),
        "model_hash": manifest.get("configuration", {}).get("model_hash"),
        "config_hash": manifest.get("config_hash"),
        "data_hash": stable_hash(sorted({record.sample_hash for record in used})),
        "wordings": sorted({record.wording for record in used if record.wording}),
        "methods": dict(methods),
        "full": full,
        "cells": cells,
        "averages": averages,
    }


def _order(manifest: Mapping[str, Any]) -> Callable[[str, int, str], tuple[Any, ...]]:
    """Sort key of (task, length, question): as listed in the manifest, unknown ones by name."""
    tasks = {task: position for position, task in enumerate(manifest.get("tasks", []))}
    questions = {name: position for position, name in enumerate(manifest.get("questions", []))}

    def key(task: str, length: int, question: str) -> tuple[Any, ...]:
        return (
            questions.get(question, len(questions)),
            length,
            tasks.get(task, len(tasks)),
            task,
        )

    return key


def _numbers(
    per_task: Mapping[str, Sequence[Record]], reference: Mapping[str, Sequence[Record]]
) -> dict[str, Any]:
    """All numbers of one cell, or of an average over several tasks."""
    everything = [record for records in per_task.values() for record in records]
    good = [record for record in everything if record.error is None]
    result: dict[str, Any] = {
        "count": len(good),
        "errors": len(everything) - len(good),
        "nulls": sum(not record.prediction.strip() for record in good),
    }
    for name in ("official", "strict"):
        values = {task: list(_scores(records, name).values()) for task, records in per_task.items()}
        result[name] = _hundred(bootstrap_average(values))
    # further metrics of the task family, e.g. the one that CateKV and ShadowKV publish
    result["metrics"] = {
        name: _mean(
            _mean(100 * record.scores[name] for record in records if name in record.scores)
            for records in per_task.values()
        )
        for name in sorted({name for record in good for name in record.scores})
    }
    differences = {
        task: paired_difference(
            _scores(records, "official"), _scores(reference.get(task, []), "official")
        )
        for task, records in per_task.items()
    }
    result["difference"] = _hundred(bootstrap_average(differences))
    for name in (
        "asked_share",
        "kept_share",
        "kept_tokens",
        "stored_bytes",
        "full_bytes",
        "prompt_tokens",
    ):
        result[name] = _mean(getattr(record, name) for record in good)
    result["time"] = {
        name: _median(
            _decode_seconds_per_token(record)
            if name == "decode_seconds_per_token"
            else getattr(record, name)
            for record in good
        )
        for name in _TIMES
    }
    peaks = [record.peak_bytes for record in good if record.peak_bytes is not None]
    result["peak_bytes"] = max(peaks) if peaks else None
    return result


def _scores(records: Sequence[Record], name: str) -> dict[int, float]:
    """Score per sample index, without failed samples."""
    found = {}
    for record in sorted(records, key=lambda r: r.index):
        value = getattr(record, name)
        if record.error is None and value is not None:
            found[record.index] = float(value)
    return found


def _decode_seconds_per_token(record: Record) -> float | None:
    # the first new token comes from the question's own forward pass and takes no step
    if record.decode_seconds is None or not record.decode_steps:
        return None
    return record.decode_seconds / record.decode_steps


def _hundred(estimate: Estimate | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {
        "mean": round(100 * estimate.mean, 4),
        "low": round(100 * estimate.low, 4),
        "high": round(100 * estimate.high, 4),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 6) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return standard.median(known) if known else None


def without_times(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a summary that an interrupted and an undisturbed run share exactly."""
    stripped = dict(summary)
    for part in ("cells", "averages"):
        stripped[part] = [
            {name: value for name, value in row.items() if name not in ("time", "peak_bytes")}
            for row in summary[part]
        ]
    return stripped


def render(summary: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The tables of a summary: scores per task and method, then one line per method."""
    table = tables.markdown_table if markdown else tables.plain_table
    blocks: list[str] = []
    if markdown:
        blocks.append(f"# {summary['model']}")
    for title, cells, averages in _runs(summary):
        blocks.append(("## " if markdown else "") + title)
        blocks.append(table(*_score_rows(cells, averages)))
        blocks.append(table(*_method_rows(averages, summary["full"])))
    blocks.append(_notes(summary))
    return "\n\n".join(blocks) + "\n"


def render_html(summary: Mapping[str, Any]) -> str:
    """The same tables with plots, as one HTML page without outside references."""
    sections = [
        html_report.section(
            title,
            averages,
            _score_rows(cells, averages),
            _method_rows(averages, summary["full"]),
        )
        for title, cells, averages in _runs(summary)
    ]
    return html_report.page(str(summary["model"]), sections, _notes(summary))


def _runs(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Title, cells and averages of every length and question mode."""
    runs = dict.fromkeys((row["length"], row["question"]) for row in summary["cells"])
    for run in runs:
        cells, averages = (
            [row for row in summary[part] if (row["length"], row["question"]) == run]
            for part in ("cells", "averages")
        )
        yield _title(*run), cells, averages


def _title(length: int, question: str) -> str:
    where = {
        "agnostic": "question asked after compression",
        "aware": "question inside the compressed prompt",
    }[question]
    return f"{f'{length} tokens' if length else 'lengths as in the file'}, {where}"


def _score_rows(
    cells: Sequence[Mapping[str, Any]], averages: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    labels = [row["method"] for row in averages]
    tasks = list(dict.fromkeys(row["task"] for row in cells))
    found = {(row["task"], row["method"]): row for row in [*cells, *averages]}
    rows = []
    for task in [*tasks, *([AVERAGE] if len(tasks) > 1 else [])]:
        row = [task]
        for label in labels:
            cell = found.get((task, label))
            estimate = cell["official"] if cell else None
            complete = task != AVERAGE or cell is None or cell["tasks"] == len(tasks)
            row.append(
                tables.number(estimate["mean"] if estimate else None) + ("" if complete else "*")
            )
        rows.append(row)
    return ["score x 100", *labels], rows


def _method_rows(
    averages: Sequence[Mapping[str, Any]], full: str | None
) -> tuple[list[str], list[list[str]]]:
    header = [
        "average",
        "score",
        "95% interval",
        *([f"to {full}", "95% interval"] if full else []),
        "strict",
        "asked",
        "kept",
        "stored MiB",
        "prefill ms",
        "compress ms",
        "ms/token",
        "samples",
        "nulls",
        "errors",
    ]
    rows = []
    for row in averages:
        time = row["time"]
        rows.append(
            [
                row["method"],
                _value(row["official"]),
                _interval(row["official"]),
                *([_difference(row["difference"]), _interval(row["difference"])] if full else []),
                _value(row["strict"]),
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


def _value(estimate: Mapping[str, float] | None) -> str:
    return tables.number(estimate["mean"] if estimate else None)


def _difference(estimate: Mapping[str, float] | None) -> str:
    return tables.signed(estimate["mean"] if estimate else None)


def _interval(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['low']:.1f} .. {estimate['high']:.1f}"


def _notes(summary: Mapping[str, Any]) -> str:
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
    lines.append(
        "kept: stored tokens / all tokens of the compressed part; asked: what was to be kept, or "
        "read; times are medians; intervals: bootstrap over samples; nulls: empty predictions."
    )
    if any(row["tasks"] != _task_count(summary, row) for row in summary["averages"]):
        lines.append("* average over fewer tasks than other methods; not comparable.")
    failed = sum(row["errors"] for row in summary["cells"])
    if failed:
        lines.append(f"{failed} measurements failed; their records in samples.jsonl say why.")
    return "\n".join(lines)


def _task_count(summary: Mapping[str, Any], average: Mapping[str, Any]) -> int:
    return len(
        {
            row["task"]
            for row in summary["cells"]
            if (row["length"], row["question"]) == (average["length"], average["question"])
        }
    )


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.{json,csv,md}`` and ``report.html`` into a run directory."""
    write_text(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "summary.md", render(summary, markdown=True))
    write_text(folder / "report.html", render_html(summary))
    header = ["task", "length", "question", "method", "count", "errors", "nulls"]
    metrics = sorted({name for row in summary["cells"] for name in row["metrics"]})
    estimates = ("official", "strict", "difference")
    plain = (
        "asked_share",
        "kept_share",
        "kept_tokens",
        "stored_bytes",
        "full_bytes",
        "prompt_tokens",
    )
    columns = [f"{name}_{part}" for name in estimates for part in ("mean", "low", "high")]
    rows = []
    for row in [*summary["cells"], *summary["averages"]]:
        values: list[object] = [row[name] for name in header]
        for name in estimates:
            values += [(row[name] or {}).get(part, "") for part in ("mean", "low", "high")]
        values += ["" if row[name] is None else row[name] for name in (*plain, "peak_bytes")]
        values += ["" if row["time"][name] is None else row["time"][name] for name in _TIMES]
        values += [row["metrics"].get(name, "") for name in metrics]
        rows.append(values)
    write_text(
        folder / "summary.csv",
        tables.csv_table([*header, *columns, *plain, "peak_bytes", *_TIMES, *metrics], rows),
    )


def report(folder: str | Path, *, rescore: bool = False) -> dict[str, Any]:
    """Summarise a run directory and write its summary files.

    Args:
        folder: of an earlier run, finished or not.
        rescore: score the stored predictions again with this version's metrics first.

    Raises:
        UserError: if the folder holds no run, or its files cannot be read or written.
    """
    path = Path(folder)
    directory = RunDirectory(path)
    manifest = directory.read_manifest() if path.is_dir() else None
    if manifest is None:
        raise UserError(
            f"{path} is no run directory (no manifest.json); give one that evaluate made"
        )
    if rescore:
        with directory:
            directory.replace_records([_rescored(r) for r in directory.records().values()])
    summary = summarise(directory.records().values(), manifest)
    try:
        write_summary(path, summary)
    except OSError as error:
        raise UserError(
            f"cannot write summary files to {path}: {error.strerror}; change its permissions"
        ) from error
    return summary


def _rescored(record: Record) -> Record:
    from catekv import tasks
    from catekv.tasks.sample import Sample

    if record.error is not None:
        return record
    sample = Sample(
        task=record.task,
        index=record.index,
        context="",
        question="",
        answer_prefix="",
        outputs=record.references,
        max_new_tokens=0,
        length=record.prompt_tokens,
        target_length=record.target_length,
        metric=record.metric,
        wording=record.wording,
        depths=record.depths,
        metadata=record.metadata,
    )
    scores = tasks.score(record.prediction, sample)
    return dataclasses.replace(
        record,
        official=scores["official"],
        strict=scores.get("strict"),
        scores={k: v for k, v in scores.items() if k not in ("official", "strict")},
    )


def export_official(folder: str | Path) -> list[Path]:
    """Write predictions and summaries in RULER's own forms, per method, length and question mode.

    ``official/<method>/<length>-<question>/`` then holds ``<task>.jsonl`` (index, pred, outputs,
    others, truncation, length; the input text is left out, records do not hold it),
    ``summary.csv`` (rows Tasks, Score, Nulls) and ``submission.csv`` (Task, ID, Prediction).
    """
    path = Path(folder)
    groups: dict[tuple[str, int, str], dict[str, list[Record]]] = {}
    for record in RunDirectory(path).records().values():
        if record.error is None:
            group = groups.setdefault((record.method, record.length, record.question), {})
            group.setdefault(record.task.removeprefix("ruler/"), []).append(record)
    written = []
    for (method, length, question), tasks_of in groups.items():
        target = path / "official" / method.replace("/", "_") / f"{length}-{question}"
        target.mkdir(parents=True, exist_ok=True)
        for task, records in tasks_of.items():
            lines = [
                json.dumps(
                    {
                        "index": record.index,
                        "pred": record.prediction,
                        "outputs": list(record.references),
                        "others": {},
                        "truncation": -1,
                        "length": record.prompt_tokens,
                    },
                    ensure_ascii=False,
                )
                for record in records
            ]
            write_text(target / f"{task.replace('/', '_')}.jsonl", "\n".join(lines) + "\n")
        names = list(tasks_of)
        means = [
            round(100 * standard.fmean(r.official or 0.0 for r in tasks_of[name]), 2)
            for name in names
        ]
        nulls = [
            f"{sum(not r.prediction.strip() for r in tasks_of[name])}/{len(tasks_of[name])}"
            for name in names
        ]
        rows: list[list[object]] = [["Score", *means], ["Nulls", *nulls]]
        write_text(target / "summary.csv", tables.csv_table(["Tasks", *names], rows))
        write_text(
            target / "submission.csv",
            tables.csv_table(
                ["Task", "ID", "Prediction"],
                [[name, r.index, r.prediction] for name in names for r in tasks_of[name]],
            ),
        )
        written.append(target)
    return written
