"""Runs of several families that are killed at any moment and go on: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.report import report

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = ("ruler/niah_single_1", "longbench/samsum", "niah")


def command(output: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "catekv", "evaluate", *options, "--quiet", "--output", str(output),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def finish(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True)


def kill_at(words: list[str], samples: Path, lines: int) -> bool:
    """Start a run and kill it when it has written so many lines; whether it was still running."""
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if samples.exists() and samples.read_bytes().count(b"\n") >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    return process.wait() == -signal.SIGKILL


def check_interrupted(folder: Path, options: tuple[str, ...], kills: int, seed: int) -> float:
    """Seconds of one core that the undisturbed run took, whatever the machine did beside it."""
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    before = os.times()
    done = finish(command(undisturbed, *options))
    used = sum(os.times()[2:4]) - sum(before[2:4])
    assert done.returncode == 0, done.stderr
    expected = (undisturbed / "samples.jsonl").read_bytes().count(b"\n")
    words, samples = command(disturbed, *options), disturbed / "samples.jsonl"
    chance = random.Random(seed)
    for lines in sorted(chance.sample(range(expected), kills)):
        assert kill_at(words, samples, lines)
        assert not (disturbed / "summary.json").exists()
    done = finish(words)
    assert done.returncode == 0, done.stderr
    assert samples.read_bytes().count(b"\n") == expected
    assert facts(disturbed) == facts(undisturbed)
    assert timeless(disturbed) == timeless(undisturbed)
    return used


def facts(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (*r.key, r.prediction, r.official, r.kept, r.stored_bytes, r.batch, r.error)
        for r in RunDirectory(folder).records().values()
    ]


def timeless(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return report.without_times(summary)


@pytest.mark.slow
def test_batches_of_several_families_survive_kills_at_random_moments(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    options = (
        "--model", str(model), "--device", "cpu", "--tasks", *TASKS, "--lengths", "512",
        "--task-option", "source=built-in", "--samples", "3", "--batch-size", "2", "--sanity",
        "--methods", "full", "snapkv:window=16,budget=64", "--max-new-tokens", "4",
    )  # fmt: skip
    check_interrupted(tmp_path, options, kills=1, seed=5)


@pytest.mark.slow
def test_ranks_share_out_batches_and_give_the_results_of_one_process(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    options = (
        "--model", str(model), "--device", "cpu", "--tasks", "longbench/qasper", "niah",
        "--lengths", "512", "--task-option", "source=built-in", "--samples", "5",
        "--batch-size", "2", "--methods", "full", "snapkv:window=16,budget=64",
        "--max-new-tokens", "4",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert finish(command(one, *options)).returncode == 0
    words = command(two, *options)
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = finish([*words[:2], *launcher, *words[2:]])
    assert done.returncode == 0, done.stderr
    assert {r.batch for r in RunDirectory(two).records().values()} == {1, 2}
    assert facts(two) == facts(one)
    assert timeless(two) == timeless(one)


@pytest.mark.slow
def test_the_mini_suite_takes_three_minutes_and_survives_kills_at_random_moments(
    tmp_path: Path,
) -> None:
    used = check_interrupted(tmp_path, ("--suite", "mini"), kills=1, seed=6)
    assert used < 180
