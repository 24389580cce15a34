"""Predictions and summaries in RULER's own file forms."""

from __future__ import annotations

import json
import statistics as standard
from pathlib import Path

from catekv.evaluation import tables
from catekv.evaluation.records.records import Record, RunDirectory
from catekv.files import write_atomically


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
            write_atomically(target / f"{task.replace('/', '_')}.jsonl", "\n".join(lines) + "\n")
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
        write_atomically(target / "summary.csv", tables.csv_table(["Tasks", *names], rows))
        write_atomically(
            target / "submission.csv",
            tables.csv_table(
                ["Task", "ID", "Prediction"],
                [[name, r.index, r.prediction] for name in names for r in tasks_of[name]],
            ),
        )
        written.append(target)
    return written
