"""Ten thousand records: the report's own time, without what else the machine does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import report_runs as runs

from catekv.evaluation.report import report

GOAL_SECONDS = 20.0


@pytest.mark.slow
def test_ten_thousand_records_take_less_than_the_goal(tmp_path: Path) -> None:
    tasks = [f"ruler/task_{n}" for n in range(13)]
    found = runs.manifest(tasks=tasks, lengths=[4096, 8192], questions=["agnostic", "aware"])
    rows = runs.records(found, samples=65)
    assert len(rows) >= 10_000
    runs.write_run(tmp_path, found, rows)
    start = time.process_time()
    report.report_on([tmp_path])
    assert time.process_time() - start < GOAL_SECONDS
