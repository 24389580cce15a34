"""The process that measures: it runs the cases in order, each until its outcome is on disk."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from bench.cases import ERROR, LOST, NOT_RUN, OK, WRONG, Case, Result, Scale
from bench.results import FILE, Outcome, Results, code_digest
from bench.suite import chosen_cases, parser
from catekv.commands.cli import run_safely
from catekv.errors import UserError
from catekv.evaluation.records import environment

#: A case that takes longer than this many times its seconds, and these seconds more, hangs; on a
#: CPU, which has other work, so many times longer.
_PATIENCE, _AND, _ON_CPU = 3.0, 30.0, 10


def main(arguments: Sequence[str] | None = None) -> int:
    """As :func:`bench.suite.main`, in the process that holds the device."""
    made = parser()
    made.add_argument("--deadline", type=float, required=True)
    made.add_argument("--go-on", action="store_true")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = made.parse_args(words)
    return run_safely(lambda: run(parsed, shlex.join(["bench/gpu_suite.sh", *words])))


def run(arguments: argparse.Namespace, command: str) -> int:
    """0 when every case has an outcome, :data:`LOST` if the device can no longer be used."""
    scale = Scale(arguments.scale == "tiny")
    if not scale.tiny and not torch.cuda.is_available():
        raise UserError(
            "no usable CUDA device; run this on a machine with a GPU, or try the stages with "
            "--scale tiny"
        )
    manifest = {
        "command": command.partition(" --deadline")[0],
        "scale": arguments.scale,
        "code": code_digest(),
        "versions": environment.versions(),
        "git_commit": environment.git_commit() or arguments.commit,
        "device": environment.device_description(scale.device),
    }
    results = Results(arguments.output, manifest, chosen_cases(arguments.stages))
    if arguments.go_on:
        results.outcomes = Results.load(arguments.output / FILE).outcomes
    elif arguments.resume is not None:
        print(results.take_over(Results.load(arguments.resume)), flush=True)
    results.write()
    return measure(results, scale, arguments.deadline)


def measure(results: Results, scale: Scale, deadline: float) -> int:
    """Run what is missing, as far as the time allows."""
    stopped = ""
    for case in results.cases:
        if case.key in results.outcomes:
            if case.essential and results.outcomes[case.key].status != OK:
                stopped = f"{case.key} is wrong"
            continue
        left = deadline - time.time()
        if stopped or left < case.seconds:
            note = stopped or f"{left:.0f} s were left, it takes about {case.seconds:.0f} s"
            results.add(Outcome(case=case.key, status=NOT_RUN, note=note))
            continue
        results.start(case)
        patience = (_PATIENCE * case.seconds + _AND) * (_ON_CPU if scale.tiny else 1)
        faulthandler.dump_traceback_later(patience, exit=True, file=2)
        outcome = run_case(case, scale)
        faulthandler.cancel_dump_traceback_later()
        results.add(outcome)
        print(results.line(case), flush=True)
        if case.essential and outcome.status != OK:
            stopped = f"{case.key} is wrong"
        if not _device_is_usable(scale):
            return LOST
    return 0


def run_case(case: Case, scale: Scale) -> Outcome:
    """Its outcome; an error is one."""
    clock = time.monotonic()
    found: dict[str, Any] = {"case": case.key}
    try:
        module = importlib.import_module(f"bench.stages.{case.stage}")
        result: Result = module.run(scale, case.name, **case.options)
        found |= vars(result)
        found["status"] = WRONG if result.wrong else OK
    except Exception as error:
        traceback.print_exc()
        note = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found |= {"status": ERROR, "note": note, "data": traceback.format_exc().splitlines()}
    return Outcome(**found, seconds=time.monotonic() - clock)


def _device_is_usable(scale: Scale) -> bool:
    """False once an error has made the CUDA context unusable."""
    if scale.tiny:
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
