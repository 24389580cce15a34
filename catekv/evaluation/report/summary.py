"""The numbers of a run as plain values: means, intervals, differences, grids."""

from __future__ import annotations

import statistics as standard
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from catekv.evaluation.columns.settings import stable_hash
from catekv.evaluation.records.records import Record
from catekv.evaluation.report import cells as extra
from catekv.evaluation.report.gaps import Gaps, of_several, scores_of
from catekv.evaluation.report.statistics import (
    DIFFERENCES,
    SCORES,
    Estimate,
    bootstrap_average,
    paired_difference,
)
from catekv.evaluation.report.untouched import untouched
from catekv.methods.stores import QUANTISED
from catekv.tasks.registry import all_tasks
from catekv.tasks.rows.sources import BUILT_IN

AVERAGE = "average"
TIMES = ("prefill_seconds", "compress_seconds", "question_seconds", "decode_seconds_per_token")
MEANS = (
    "asked_share", "kept_share", "kept_tokens", "stored_bytes", "full_bytes", "prompt_tokens",
    "at_limit",
)  # fmt: skip


#: Records by task and method.
Columns = dict[str, dict[str, list[Record]]]


def summarise(records: Iterable[Record], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a run as plain values.

    Scores are means x 100 with 95 % intervals (:func:`.statistics.bootstrap_average`);
    ``difference`` is the paired difference to the full cache on the same samples. ``time`` holds
    medians. Everything but ``time`` and ``peak_bytes`` is the same however often the run was
    interrupted.

    ``missing`` counts the samples that other methods of the table have a score of and this one has
    not, ``unpaired`` those that it has and the full cache has not: where they are not 0, means (or
    differences) of a table are over different samples. ``untouched`` counts those in which a method
    compressed nothing.

    ``metrics`` are the means of the other scores, e.g. ``catekv``, the score that the CateKV and
    ShadowKV papers report. ``family_averages`` are averages over the tasks of one benchmark.
    ``needles`` are the cells of needle-in-a-haystack grids, ``buckets`` the lengths of LongBench-E,
    ``choices`` the groups of LongBench v2.

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
    full = next((label for label, method in methods.items() if _is_full(method)), None)
    return {
        "model": manifest.get("model"),
        "model_hash": manifest.get("configuration", {}).get("model_hash"),
        "config_hash": manifest.get("config_hash"),
        "data_hash": stable_hash(sorted({record.sample_hash for record in used})),
        "wordings": sorted({record.wording for record in used if record.wording}),
        "generated": _generated(used),
        "largest_batch": max((record.batch for record in used), default=1),
        "methods": dict(methods),
        "full": full,
        **_rows(_by_run(used, manifest), methods, full),
        "needles": extra.needle_cells(used, list(methods)),
        "buckets": extra.bucket_cells(used, list(methods)),
        "choices": extra.choice_cells(used, list(methods)),
        "turns": extra.turn_cells(used, list(methods)),
    }


def _is_full(method: Mapping[str, Any]) -> bool:
    """Whether a method, an entry of the manifest's, is the full cache in the model's own type."""
    store = method.get("options", {}).get("store")
    return method["name"] == "full" and store not in QUANTISED


def family_of(task: str) -> str:
    """``ruler`` of ``ruler/vt``; a task without a family is its own."""
    return task.partition("/")[0]


def _generated(records: Sequence[Record]) -> list[str]:
    """Benchmarks that consist of rows of their own, of which generated ones were measured."""
    rows = {task.name for task in all_tasks().values() if task.natural}
    built_in = {record.task for record in records if record.metadata.get("data") == BUILT_IN}
    return sorted({family_of(task) for task in built_in & rows})


def _by_run(
    records: Sequence[Record], manifest: Mapping[str, Any]
) -> dict[tuple[int, str], Columns]:
    """Records by (length, question), task and method, in the order of the manifest."""
    groups: dict[tuple[str, int, str], dict[str, list[Record]]] = {}
    for record in records:
        columns = groups.setdefault((record.task, record.length, record.question), {})
        columns.setdefault(record.method, []).append(record)
    order = _order(manifest)
    runs: dict[tuple[int, str], Columns] = {}
    for (task, length, question), columns in sorted(groups.items(), key=lambda g: order(*g[0])):
        runs.setdefault((length, question), {})[task] = columns
    return runs


def _rows(
    runs: Mapping[tuple[int, str], Columns], methods: Mapping[str, Any], full: str | None
) -> dict[str, list[dict[str, Any]]]:
    cells: list[dict[str, Any]] = []
    averages: list[dict[str, Any]] = []
    families: list[dict[str, Any]] = []
    for (length, question), per_task in runs.items():
        run = _Run(per_task, methods, full)
        place = {"length": length, "question": question}
        for task, columns in per_task.items():
            cells += [
                {"task": task, **place, "method": label, **run.numbers(label, [task])}
                for label in methods
                if label in columns
            ]
        for label in methods:
            mine = [task for task, columns in per_task.items() if label in columns]
            if not mine:
                continue
            average = {"task": AVERAGE, **place, "method": label}
            averages.append({**average, **run.numbers(label, list(per_task))})
            for family in dict.fromkeys(family_of(task) for task in mine):
                of_family = [task for task in per_task if family_of(task) == family]
                numbers = run.numbers(label, of_family)
                families.append({**average, "family": family, **numbers})
    return {"cells": cells, "averages": averages, "family_averages": families}


class _Run:
    """The records of one length and kind of question."""

    def __init__(self, records: Columns, methods: Mapping[str, Any], full: str | None) -> None:
        self.records = records
        self.methods = methods
        self.full = full
        self.gaps = {task: Gaps(columns, methods, full) for task, columns in records.items()}

    def numbers(self, label: str, tasks: Sequence[str]) -> dict[str, Any]:
        """A method's numbers over the tasks that it has records of, and what is missing in all."""
        mine = [task for task in tasks if label in self.records[task]]
        full = None if label == self.full else self.full
        return {
            **_numbers(
                {task: self.records[task][label] for task in mine},
                {task: self.records[task].get(full, []) for task in mine} if full else {},
            ),
            **of_several([self.gaps[task] for task in tasks], label),
            "untouched": sum(
                untouched(self.records[task][label], self.methods[label]) for task in mine
            ),
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
        "errors": sum(r.error is not None and not r.skipped for r in everything),
        "skipped": sum(record.skipped for record in everything),
        "nulls": sum(not any(map(str.strip, record.texts)) for record in good),
        "cut": sum(bool(record.metadata.get("cut_tokens")) for record in good),
    }
    for name in ("official", "strict"):
        values = {
            task: list(scores_of(records, name).values()) for task, records in per_task.items()
        }
        result[name] = _hundred(bootstrap_average(values, scale=SCORES))
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
            scores_of(records, "official"), scores_of(reference.get(task, []), "official")
        )
        for task, records in per_task.items()
    }
    result["difference"] = _hundred(bootstrap_average(differences, scale=DIFFERENCES))
    for name in MEANS:
        result[name] = _mean(getattr(record, name) for record in good)
    result["time"] = {
        name: _median(
            _decode_seconds_per_token(record)
            if name == "decode_seconds_per_token"
            else getattr(record, name)
            for record in good
        )
        for name in TIMES
    }
    peaks = [record.peak_bytes for record in good if record.peak_bytes is not None]
    result["peak_bytes"] = max(peaks) if peaks else None
    return result


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
    for part in ("cells", "averages", "family_averages"):
        stripped[part] = [
            {name: value for name, value in row.items() if name not in ("time", "peak_bytes")}
            for row in summary[part]
        ]
    return stripped
