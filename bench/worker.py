"""The process of one stage: run its cases in order, each until its outcome is on disk."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench.cases import Case, Stage
from bench.records import ERROR, NOT_RUN, OK, WRONG, Outcome, Records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases of a stage that have no outcome yet; returns 0, or 3 if the device is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scale", default="full")
    parser.add_argument("--seconds", type=float, required=True)
    parsed = parser.parse_args(arguments)
    deadline = time.monotonic() + parsed.seconds
    records = Records(parsed.output)
    module = importlib.import_module(f"bench.stages.{parsed.stage}")
    cases: list[Case] = module.cases(Stage(parsed.scale))
    records.announce(parsed.stage, [case.name for case in cases])
    done = {outcome.case for outcome in records.outcomes(parsed.stage)}
    for case in cases:
        if case.name in done:
            continue
        left = deadline - time.monotonic()
        if left < case.seconds:
            note = f"{left:.0f} s were left, it takes about {case.seconds:.0f} s"
            records.add(Outcome(parsed.stage, case.name, NOT_RUN, note=note))
            continue
        records.start(parsed.stage, case.name)
        outcome = _run(parsed.stage, case)
        records.add(outcome)
        print(_line(outcome), flush=True)
        if not _device_is_usable():
            return 3
    return 0


def _run(stage: str, case: Case) -> Outcome:
    clock = time.monotonic()
    try:
        result = case.run()
    except Exception as error:
        traceback.print_exc()
        note = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Outcome(stage, case.name, ERROR, note=note, seconds=time.monotonic() - clock)
    return Outcome(
        stage,
        case.name,
        WRONG if result.wrong else OK,
        result.rows,
        result.goals,
        result.note,
        time.monotonic() - clock,
        result.data,
    )


def _line(outcome: Outcome) -> str:
    goals = "; ".join(goal.describe() for goal in outcome.goals)
    parts = [f"[{outcome.seconds:6.1f} s] {outcome.case}: {outcome.status}", outcome.note, goals]
    return "; ".join(part for part in parts if part)


def _device_is_usable() -> bool:
    """False once an error has made the CUDA context unusable."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
