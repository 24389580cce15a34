"""The scripts of experiments/cokv on the embedded model, as small as they go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from catekv.calibration.cokv.split import read_splits
from catekv.commands.cli import run_safely
from experiments.cokv import split as draw_splits

ROOT = Path(__file__).resolve().parents[2]
TASK = "ruler/niah_multikey_1"
SMALL = {
    "TASKS": TASK, "LENGTH": "128", "SAMPLES": "8", "TASK_OPTIONS": "", "MAX_DRAWS": "60",
    "CAPACITIES": "16", "ALPHAS": "1 12", "NEEDLE_SCORED": "128", "NEEDLE_LENGTHS": "128 256",
    "DEPTHS": "2", "LATENCY_PROMPT": "128", "LATENCY_OUTPUTS": "1 4", "LATENCY_CONTEXTS": "128 256",
    "SOURCE": TASK, "TARGETS": TASK, "LIMIT": "2",
}  # fmt: skip


def run(script: str, results: Path) -> Path:
    environment = {**os.environ, **SMALL, "PYTHON": sys.executable, "RESULTS": str(results)}
    done = subprocess.run(
        ["bash", f"experiments/cokv/{script}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return results


@pytest.mark.parametrize(
    "script", sorted(path.name for path in (ROOT / "experiments" / "cokv").glob("*.sh"))
)
def test_scripts_are_shell(script: str) -> None:
    subprocess.run(["bash", "-n", f"experiments/cokv/{script}"], cwd=ROOT, check=True)


def written(folder: Path) -> set[tuple[Path, int]]:
    """Result files and when they were written."""
    found = [*folder.rglob("*.jsonl"), *folder.glob("*result_*.json")]
    return {(path, path.stat().st_mtime_ns) for path in found}


def test_splits_are_added_to_and_never_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "split.json"

    def split(task: str, *words: str) -> int:
        words = ("--tasks", task, "--length", "96", "--output", str(path), *words)
        arguments = draw_splits.arguments_parser().parse_args(words)
        return run_safely(lambda: draw_splits.split(arguments))

    options = ("--samples", "8", "--task-option", "num_keys=1")
    assert split("ruler/niah_single_1", *options) == 0
    first = read_splits(path)
    assert split("ruler/niah_single_1", *options, "--share", "0.5") == 0
    assert read_splits(path) == first
    assert split("ruler/niah_single_2", *options) == 0
    both = read_splits(path)
    assert list(both) == ["ruler/niah_single_1", "ruler/niah_single_2"]
    assert both["ruler/niah_single_1"] == first["ruler/niah_single_1"]
    assert split("ruler/niah_single_1", "--samples", "9", "--task-option", "num_keys=1") == 2
    refusal = "holds a split of ruler/niah_single_1 made of other samples"
    assert refusal in capsys.readouterr().err
    assert read_splits(path) == both


@pytest.mark.slow
def test_every_experiment_runs(tmp_path: Path) -> None:
    results = run("run_importance.sh", tmp_path)
    assert (results / "scores" / "niah_multikey_1" / "scores.npz").exists()
    assert (results / "importance" / "importance.md").exists()
    run("run_longbench.sh", tmp_path)
    longbench = results / "longbench"
    for name in ("full", "snapkv_16", "pyramidkv_16", "adakv_16", "headkv_16", "cokv_16"):
        scores = json.loads((longbench / f"list_result_{name}.json").read_text())
        assert len(scores["niah_multikey_1"]) == 2
        mean = json.loads((longbench / f"result_{name}.json").read_text())["niah_multikey_1"]
        assert mean == round(100 * sum(scores["niah_multikey_1"]) / 2, 2)
        rows = (longbench / "pred" / name / "niah_multikey_1.jsonl").read_text().splitlines()
        assert set(json.loads(rows[0])) == {"pred", "answers", "all_classes", "length"}
    results_before = written(longbench)
    run("run_longbench.sh", tmp_path)
    assert written(longbench) == results_before  # an interrupted run goes on after what is there
    (longbench / "list_result_snapkv_16.json").unlink()
    run("run_longbench.sh", tmp_path)
    assert {path.name for path, _ in written(longbench) ^ results_before} == {
        path.name for path, _ in results_before
    }
    run("run_masking.sh", tmp_path)
    curve = json.loads((results / "masking" / "masking_niah_multikey_1.json").read_text())
    assert curve["counts"] == [1, 2, 4, 6, 8]
    assert {"full", "window", "top-1", "low-8", "random-2-3"} <= set(curve["scores"])
    run("run_needle.sh", tmp_path)
    rows = json.loads((results / "needle" / "needle_full.json").read_text())
    assert [(length, depth) for length, depth, _ in rows] == [
        (128, 0.0), (128, 100.0), (256, 0.0), (256, 100.0)
    ]  # fmt: skip
    run("run_latency.sh", tmp_path)
    times = json.loads((results / "latency" / "generation_times.json").read_text())
    assert times["cokv"]["128"]["4"]["new_token_count"] == 4
    assert len(json.loads((results / "latency" / "cokv_128.json").read_text())) == 2
