"""Jobs one after another in this process."""

from __future__ import annotations

import os
import platform
import sys
import time

from catekv.evaluation.sweep.placement import Machine
from catekv.evaluation.sweep.state import INTERRUPTED, SweepState
from catekv.evaluation.sweep.work import Loaded, Result, do
from catekv.prefill.devices import Device, find_device


def this_machine() -> list[Machine]:
    """This machine, as its GPUs (if it has any) and as its cores and memory."""
    import torch

    device: Device = find_device("auto")
    name, cores = platform.node() or "this machine", os.cpu_count() or 1
    if device.kind == "cuda":
        gpus = torch.cuda.device_count()
        memory = min(
            int(torch.cuda.get_device_properties(index).total_memory) for index in range(gpus)
        )
        return [Machine(name, "cuda", memory, cores, gpus)]
    return [Machine(name, "cpu", device.memory_bytes, cores)]


def run(state: SweepState, max_retries: int, quiet: bool, command: str) -> None:
    """Do all jobs that are not finished."""
    loaded = Loaded()
    todo = state.open_jobs()
    clock = time.monotonic()
    for number, job in enumerate(todo):
        if not quiet:
            left = ""
            if number:
                each = (time.monotonic() - clock) / number
                left = f", about {_minutes(each * (len(todo) - number))} left"
            print(
                f"job {number + 1} of {len(todo)}: {job.name} "
                f"({state.count('failed')} failed{left})",
                file=sys.stderr,
            )
        for attempt in range(max_retries + 1):
            state.begin(job)
            result = _attempt(state, job.name, loaded, quiet, command)
            if not result.error:
                state.finish(job)
                break
            if result.final or attempt == max_retries:
                state.fail(job, result.error)
                break
            state.wait(job, result.error)


def _attempt(state: SweepState, name: str, loaded: Loaded, quiet: bool, command: str) -> Result:
    try:
        return do(
            state.jobs[name],
            state.places[name],
            state.path(name),
            loaded=loaded,
            progress=not quiet,
            quiet=False,
            command=command,
        )
    except KeyboardInterrupt:
        state.wait(state.jobs[name], INTERRUPTED)
        raise
    except Exception as error:
        # whatever it is, the other jobs go on
        return Result(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
