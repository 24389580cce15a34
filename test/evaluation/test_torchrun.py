"""The published accuracy script under torchrun: any number of processes, shared out by samples or
by the model, writes what one process writes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.report import report

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = str(REPOSITORY / "test" / "eval_acc.py")
TASKS, SAMPLES = ("ruler/niah_multikey_1", "ruler/vt"), 2
TIMES = ("prefill_seconds", "compress_seconds", "question_seconds", "decode_seconds")


def words(output: Path) -> list[str]:
    """Arguments of the script, for the embedded model."""
    return [
        "--dataset_name", ",".join(TASKS), "--datalen", "512", "--num_samples", str(SAMPLES),
        "--method", "CateKV", "--device", "cpu", "--output", str(output),
    ]  # fmt: skip


def script(output: Path, world: int = 1, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the script with ``world`` processes on the embedded model."""
    start = [sys.executable]
    if world > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*start, SCRIPT, *words(output), *more], env=environment, capture_output=True, text=True
    )


def records(folder: Path, *without: str) -> list[dict[str, Any]]:
    """All records in the order of the file, without times."""
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in without}
        for line in lines
    ]


def by_key(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["task"], row["index"], row["method"]))


def summary(folder: Path) -> dict[str, Any]:
    return report.without_times(json.loads((folder / "summary.json").read_text()))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    assert runpy.run_path(SCRIPT)["main"](words(folder)) == 0
    assert len(records(folder)) == len(TASKS) * SAMPLES * 2
    return folder


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_measures_what_one_does(
    single: Path, tmp_path: Path, world: int
) -> None:
    done = script(tmp_path / "run", world)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score x 100") == 1, "only the first process prints"
    assert summary(tmp_path / "run") == summary(single)
    merged = records(tmp_path / "run", *TIMES)
    assert by_key(merged) == by_key(records(single, *TIMES))
    # the order of the merged file says nothing of how many wrote it
    assert merged == by_key(merged)
    assert [file.name for file in (tmp_path / "run").glob("samples*")] == ["samples.jsonl"]


@pytest.mark.slow
def test_processes_that_share_the_model_write_what_one_does(single: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="tensor parallelism needs the package accelerate")
    folder = tmp_path / "run"
    done = script(folder, 2, "--parallel", "tensor")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score x 100") == 1, "only the first process prints"
    # each process has scratch memory of its own, which counts as stored
    without = (*TIMES, "stored_bytes")
    assert records(folder, *without) == records(single, *without)
    for shared, alone in zip(records(folder), records(single), strict=True):
        assert shared["stored_bytes"] == pytest.approx(alone["stored_bytes"], rel=0.01)
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [{"count": 2, "parallel": "tensor"}]


@pytest.mark.slow
def test_a_shared_model_goes_on_in_the_records_of_one_process(single: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="tensor parallelism needs the package accelerate")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_bytes((single / "manifest.json").read_bytes())
    lines = (single / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "samples.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    done = script(folder, 2, "--parallel", "tensor")
    assert done.returncode == 0, done.stderr
    assert (folder / "samples.jsonl").read_bytes().startswith(b"".join(lines[:3]))
    assert len(RunDirectory(folder).records()) == len(records(folder)) == len(lines)


def test_one_process_cannot_share_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [*words(tmp_path / "run"), "--parallel", "tensor"]
    assert runpy.run_path(SCRIPT)["main"](alone) == 2
    assert "start it with torchrun --nproc_per_node N" in capsys.readouterr().err
