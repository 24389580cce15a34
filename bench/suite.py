"""Correctness and speed of everything that needs a GPU, within a budget of seconds.

This process holds no device: it starts the one that measures, and starts it again behind a case
that ended it, so that a crash or a hang costs one case.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.cases import BUDGET, CASES, ERROR, LOST, STAGES, Case, plan_text
from bench.results import FILE, TEXT, Outcome, Results
from catekv.commands.cli import Parser, run_safely
from catekv.errors import UserError

#: How often the measuring process is started again behind a case that ended it.
RESTARTS = 3
#: Seconds beyond the budget after which it is stopped from outside.
_GRACE = 10
#: Packages that nothing can be measured without.
_NEEDED = ("torch", "transformers", "triton")
#: GiB of the devices that a plan is printed for.
SIZES = (78, 139)


def parser() -> Parser:
    """Options of the suite; the measuring process has two more."""
    made = Parser(prog="bench/gpu_suite.sh", description=(__doc__ or "").partition("\n")[0])
    add = made.add_argument
    add("--stages", default=",".join(STAGES), help=f"out of {','.join(STAGES)} (default: all)")
    add("--output", type=Path, default=Path("results/gpu"), help="results folder")
    add("--scale", choices=("full", "tiny"), default="full", help="tiny: CPU, tiny shapes")
    add("--budget-seconds", type=float, default=BUDGET, help=f"for all (default: {BUDGET})")
    add("--resume", type=Path, metavar="FILE", help=f"a {FILE} whose finished cases are skipped")
    add("--commit", help="for the manifest, where the checkout has no .git")
    add("--plan", action="store_true", help="print what would run, and run nothing")
    return made


def chosen_cases(stages: str) -> tuple[Case, ...]:
    """The cases of some stages, in the suite's order.

    Raises:
        UserError: an unknown stage, or none.
    """
    names = [name for name in stages.replace(" ", "").split(",") if name]
    for name in names or [""]:
        if name not in STAGES:
            raise UserError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
    return tuple(case for case in CASES if case.stage in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser().parse_args(words)
    return run_safely(lambda: run(parsed, words))


def run(arguments: argparse.Namespace, words: list[str]) -> int:
    """0, 1 if a result was wrong or a case failed, 2 where nothing can be measured."""
    cases = chosen_cases(arguments.stages)
    if not 0 < arguments.budget_seconds < float("inf"):
        raise UserError(f"--budget-seconds {arguments.budget_seconds:g} must be above 0")
    if arguments.plan:
        print("\n\n".join(plan_text(cases, size) for size in SIZES))
        return 0
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"{sys.executable} has no {' and no '.join(absent)}; name a Python that has with "
            "PYTHON=..., or see with --plan what would run"
        )
    folder: Path = arguments.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; use --output") from error
    deadline = time.time() + arguments.budget_seconds
    # ended from outside, it ends the measuring process, which is in a session of its own
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    begun = False
    for _ in range(RESTARTS + 1):
        code = _measure([*words, *(["--go-on"] if begun else [])], deadline)
        if code == 2:
            # it has said why; on a machine without a GPU this is what would have run
            print("\n\n".join(plan_text(cases, size) for size in SIZES))
            return 2
        if code == 0:
            break
        if not _note_end(folder, code, begun):
            break
        begun = True
    return _finish(folder)


def _measure(words: list[str], deadline: float) -> int | None:
    """Exit code of one measuring process, None if it had to be stopped."""
    command = [sys.executable, "-m", "bench.worker", *words, "--deadline", f"{deadline:.1f}"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout=max(0.0, deadline - time.time()) + _GRACE)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # what it started, too, which would go on using the device beside the next case
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _note_end(folder: Path, code: int | None, begun: bool) -> bool:
    """Note the case during which the process ended; False if there is nothing to go on with."""
    reason = "ran out of time" if code is None else f"the process ended with {code}"
    try:
        results = Results.load(folder / FILE)
    except UserError as error:
        raise UserError(f"{reason} before its first case") from error
    if code == LOST:
        return bool(results.missing())
    if not results.running:
        results.add(Outcome(case="start", status=ERROR, note=f"{reason} between two cases"))
        return False
    results.add(Outcome(case=results.running, status=ERROR, note=reason))
    return code is not None and bool(results.missing())


def _finish(folder: Path) -> int:
    """Print the goals and what is bad; the exit code."""
    results = Results.load(folder / FILE)
    print(f"\n{results.summary()}; results: {folder} ({TEXT})")
    for goal in results.goals():
        print(goal["text"])
    for outcome in results.bad():
        print(f"{outcome.status}: {outcome.case}: {outcome.note}")
    return 1 if results.bad() else 0


if __name__ == "__main__":
    sys.exit(main())
