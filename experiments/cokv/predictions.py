"""Results in the published files: predictions as JSONL, scores per task and per example as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catekv.calibration.cokv.comparison import Answer
from catekv.errors import UserError
from catekv.evaluation.report.statistics import DIFFERENCES, SCORES, bootstrap_average
from catekv.evaluation.tables import markdown_table
from catekv.files import read_object, write_atomically
from catekv.tasks.core.sample import Sample


def short_name(task: str) -> str:
    """A task's name in file names and published tables: ``longbench/qasper`` is ``qasper``."""
    return Path(task).stem if task.endswith(".jsonl") else task.rpartition("/")[2]


def write_predictions(
    folder: str | Path, name: str, task: str, samples: Sequence[Sample], answers: Sequence[Answer]
) -> Path:
    """``pred/NAME/TASK.jsonl``: pred, answers, all_classes and length of every sample."""
    rows = [
        json.dumps(
            {
                "pred": answer.text,
                "answers": list(sample.outputs),
                "all_classes": sample.scoring.get("all_classes"),
                "length": sample.length,
            },
            ensure_ascii=False,
        )
        for sample, answer in zip(samples, answers, strict=True)
    ]
    return _write(Path(folder) / "pred" / name / f"{short_name(task)}.jsonl", rows)


def write_results(
    folder: str | Path, name: str, scores: Mapping[str, Sequence[float]]
) -> tuple[Path, Path]:
    """``result_NAME.json`` (100 times the mean of each task) and ``list_result_NAME.json`` (the
    score of every example); what the files hold of other tasks stays."""
    folder = Path(folder)
    mean = {
        short_name(task): round(100 * sum(values) / len(values), 2)
        for task, values in scores.items()
    }
    whole = {short_name(task): list(values) for task, values in scores.items()}
    return (
        _merge(folder / f"result_{name}.json", mean),
        _merge(folder / f"list_result_{name}.json", whole),
    )


def read_results(folder: str | Path, name: str) -> dict[str, list[float]]:
    """The scores of every example by task, from ``list_result_NAME.json``; ``UserError`` if it is
    not there."""
    path = Path(folder) / f"list_result_{name}.json"
    held = read_object(path)
    if not all(isinstance(values, list) for values in held.values()):
        raise UserError(f"{path} holds something that is no list of scores; remove it")
    return held


def comparison_table(
    scores: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str]
) -> str:
    """Markdown: a row per run, a column per task, and the average with its 95 % interval.

    Args:
        scores: run -> task -> score of every example, each in [0, 1].
        names: the runs, in the order of the rows.
    """
    tasks = list(dict.fromkeys(task for name in names for task in scores[name]))
    rows = []
    for name in names:
        cells = [
            f"{100 * sum(values) / len(values):.1f}" if values else "-"
            for values in (scores[name].get(task, ()) for task in tasks)
        ]
        rows.append([name, *cells, average(scores[name])])
    return markdown_table(["run", *map(short_name, tasks), "average (95 %)"], rows)


def average(scores: Mapping[str, Sequence[float]], scale: tuple[float, float] = SCORES) -> str:
    """The mean of the tasks' means with its interval, in percent."""
    found = bootstrap_average(scores, scale=scale)
    if found is None:
        return "-"
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def paired_table(
    scores: Mapping[str, Mapping[str, Sequence[float]]], pairs: Sequence[tuple[str, str]]
) -> str:
    """Markdown: mean differences of two runs over the same samples, in points, with intervals.

    Args:
        scores: as in :func:`comparison_table`.
        pairs: (run, the run it is compared with).
    """
    rows = []
    for name, other in pairs:
        both = [task for task in scores[name] if task in scores[other]]
        differences = {
            task: [a - b for a, b in zip(scores[name][task], scores[other][task], strict=True)]
            for task in both
        }
        rows.append([name, other, average(differences, DIFFERENCES)])
    return markdown_table(["run", "against", "difference (95 %)"], rows, left=(0, 1))


def scores_of(answers: Sequence[Answer]) -> list[float]:
    return [answer.score for answer in answers]


def _merge(path: Path, content: Mapping[str, Any]) -> Path:
    held: dict[str, Any] = {}
    if path.exists():
        held = read_object(path, "remove it")
    return _write(path, [json.dumps({**held, **content}, indent=1)])


def _write(path: Path, lines: Sequence[str]) -> Path:
    return write_atomically(path, "\n".join(lines) + "\n")
