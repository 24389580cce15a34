"""Run the stages one after the other, each in a process of its own, within a budget of seconds.

A process of its own per stage: a kernel that kills the CUDA context, or hangs, costs the case that
launched it and not the rest. The stage is then started again behind that case.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.records import ERROR, FILE, NOT_RUN, WRONG, Outcome, Records
from catekv.commands.cli import Parser, run_safely
from catekv.errors import UserError

#: name -> (title, seconds it may take at most)
STAGES: dict[str, tuple[str, int]] = {
    "environment": ("Environment", 60),
    "correctness": ("Correctness against float32 references", 200),
    "kernels": ("Decode kernel", 120),
    "decode": ("Decode steps, Llama-3-8B shapes", 150),
    "throughput": ("Largest batches of 40K-token samples", 80),
    "prefill": ("Prefill, scoring and packing", 150),
    "graphs": ("CUDA graphs", 60),
    "sweep": ("Launch options of the decode kernel", 200),
}
SCALES = ("full", "tiny")
BUDGET = 560
#: A stage with less time left is not started.
LEAST_SECONDS = 8
#: How often a stage that crashed is started again behind the case that crashed.
RESTARTS = 3
LOG = "suite.log"
TINY_REMARK = (
    "Tiny shapes on a CPU: this shows that the suite works. Times and goals say nothing here."
)
_GRACE = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    parser = Parser(prog="bench/gpu_suite.sh", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--stages", default=",".join(STAGES), help=f"out of {','.join(STAGES)} (default: all)"
    )
    parser.add_argument("--output", type=Path, default=Path("results/gpu"), help="results folder")
    parser.add_argument("--scale", choices=SCALES, default="full", help="tiny: CPU, tiny shapes")
    parser.add_argument(
        "--budget-seconds", type=float, default=BUDGET, help=f"for everything (default: {BUDGET})"
    )
    parser.add_argument("--commit", help="for the manifest, where the checkout has no .git")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words)
    return run_safely(lambda: run(parsed, shlex.join(["bench/gpu_suite.sh", *words])))


def run(arguments: argparse.Namespace, command: str) -> int:
    """Run the chosen stages; 0, or 1 if a result was wrong or a case failed."""
    started = time.monotonic()
    chosen = [name for name in arguments.stages.replace(" ", "").split(",") if name]
    for name in chosen:
        if name not in STAGES:
            raise UserError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
    manifest = make_manifest(command, arguments.scale)
    manifest["git_commit"] = manifest["git_commit"] or arguments.commit
    folder: Path = arguments.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (FILE, LOG):
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; use --output") from error
    titles = {name: STAGES[name][0] for name in STAGES if name in chosen}
    records = Records(folder)
    for name, title in titles.items():
        left = arguments.budget_seconds - (time.monotonic() - started)
        limit = limit_of(name, arguments.scale, left)
        if limit < LEAST_SECONDS:
            records.add(Outcome(name, "all", NOT_RUN, note="no time left"))
        else:
            _say(folder, f"\n== {name} (at most {limit:.0f} s)")
            _run_stage(name, folder, arguments.scale, limit)
        _say(folder, report.stage_text(title, records.outcomes(name), markdown=False))
        report.write(folder, manifest, titles)
    seconds = time.monotonic() - started
    _say(folder, f"\n{seconds:.0f} s; results: {folder} ({report.SUITE_MARKDOWN})")
    outcomes = [outcome for name in titles for outcome in records.outcomes(name)]
    for goal in (goal for outcome in outcomes for goal in outcome.goals):
        _say(folder, goal.describe())
    bad = [outcome for outcome in outcomes if outcome.status in (WRONG, ERROR)]
    for outcome in bad:
        _say(folder, f"{outcome.status}: {outcome.stage}, {outcome.case}: {outcome.note}")
    return 1 if bad else 0


def limit_of(name: str, scale: str, left: float) -> float:
    """Seconds that a stage may take of those that are left."""
    return left if scale == "tiny" else min(STAGES[name][1], left)


def make_manifest(command: str, scale: str) -> dict[str, Any]:
    """Where the numbers come from.

    Raises:
        UserError: real shapes were asked for and there is no usable GPU.
    """
    device = "cpu" if scale == "tiny" else "cuda"
    words = [sys.executable, "-m", "bench.machine", device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise UserError(
            "no usable CUDA device; run this on a machine with a GPU, or try the stages with "
            "--scale tiny"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"this Python cannot run the suite: {last}; choose another with PYTHON=")
    remark = TINY_REMARK if scale == "tiny" else ""
    found = json.loads(done.stdout.splitlines()[-1])
    return {"command": command, "scale": scale, "remark": remark, **found}


def _run_stage(name: str, folder: Path, scale: str, limit: float) -> None:
    """Start the stage's process, again where it crashed, until its time is over."""
    records = Records(folder)
    deadline = time.monotonic() + limit
    for _ in range(RESTARTS + 1):
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            break
        code = _run_process(name, folder, scale, left)
        stopped = records.interrupted(name)
        if stopped is not None:
            reason = "ran out of time" if code is None else f"the process ended with {code}"
            records.add(Outcome(name, stopped, NOT_RUN if code is None else ERROR, note=reason))
        elif code:
            note = f"the process ended with {code} before its first case"
            records.add(Outcome(name, "start", ERROR, note=note))
            break
        if code is None or not records.missing(name):
            break
    for case in records.missing(name):
        records.add(Outcome(name, case, NOT_RUN, note="no time left"))


def _run_process(name: str, folder: Path, scale: str, seconds: float) -> int | None:
    """The exit code of one process of a stage, None if it had to be stopped."""
    words = [sys.executable, "-m", "bench.worker", "--stage", name, "--output", str(folder)]
    words += ["--scale", scale, "--seconds", f"{seconds:.1f}"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **_environment(name, scale)},
        start_new_session=True,
    )
    assert process.stdout is not None

    def forward() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            _say(folder, line.rstrip("\n"))

    reader = threading.Thread(target=forward, daemon=True)
    reader.start()
    try:
        code: int | None = process.wait(timeout=seconds + _GRACE)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        if process.poll() is None:
            # a process group of its own: compilers that it started go with it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    reader.join(timeout=_GRACE)
    return code


def _environment(name: str, scale: str) -> dict[str, str]:
    if scale == "tiny" and name == "correctness":
        return {"TRITON_INTERPRET": "1"}
    return {}


def _say(folder: Path, text: str) -> None:
    print(text, flush=True)
    with (folder / LOG).open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
