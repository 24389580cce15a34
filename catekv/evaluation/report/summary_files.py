"""``summary.{json,csv,md}`` and ``report.html`` of a run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.summary import MEANS, TIMES
from catekv.evaluation.report.summary_text import render
from catekv.files import write_atomically


def write_tables(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.{json,csv,md}`` into a run directory."""
    write_atomically(
        folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    )
    write_atomically(folder / "summary.md", render(summary, markdown=True))
    write_atomically(folder / "summary.csv", as_csv(summary))


def as_csv(summary: Mapping[str, Any]) -> str:
    """One line per cell and average, with all numbers."""
    header = [
        "task", "length", "question", "method", "count", "errors", "nulls", "skipped", "cut",
        "missing", "unpaired", "untouched",
    ]  # fmt: skip
    metrics = sorted({name for row in summary["cells"] for name in row["metrics"]})
    estimates = ("official", "strict", "difference")
    columns = [f"{name}_{part}" for name in estimates for part in ("mean", "low", "high")]
    rows = []
    for row in [*summary["cells"], *summary["averages"]]:
        values: list[object] = [row[name] for name in header]
        for name in estimates:
            values += [(row[name] or {}).get(part, "") for part in ("mean", "low", "high")]
        values += ["" if row[name] is None else row[name] for name in (*MEANS, "peak_bytes")]
        values += ["" if row["time"][name] is None else row["time"][name] for name in TIMES]
        values += [row["metrics"].get(name, "") for name in metrics]
        rows.append(values)
    return tables.csv_table([*header, *columns, *MEANS, "peak_bytes", *TIMES, *metrics], rows)
