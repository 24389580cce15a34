"""Doing one job: in this process, or in several that share the model."""

from __future__ import annotations

import dataclasses
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.evaluation.plugins import load_plugins
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.run.distributed import TENSOR, Process, process_group
from catekv.evaluation.sweep.jobs import Job
from catekv.evaluation.sweep.placement import Place

if TYPE_CHECKING:
    from catekv.model import CateKVModel


@dataclass(frozen=True)
class Result:
    """How an attempt at a job ended.

    Attributes:
        error: "" if everything is measured, else why not, on one line.
        final: whether trying again would end the same way (wrong input).
    """

    error: str = ""
    final: bool = False


class Loaded:
    """The model of the last job, kept for the next one with the same."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._model: CateKVModel | None = None

    def model(self, job: Job, process: Process) -> CateKVModel:
        from catekv.evaluation.run.session import open_model

        request = job.request
        key = (request.model, request.dtype, request.device, request.attention)
        if self._model is None or key != self._key:
            self._model = None  # two models need not fit
            self._model = open_model(request, process)
            self._key = key
        return self._model


def do(
    job: Job,
    place: Place,
    folder: Path,
    *,
    loaded: Loaded | None = None,
    progress: bool = False,
    quiet: bool = True,
    command: str = "",
) -> Result:
    """Measure what a job's run directory lacks.

    Args:
        folder: the run directory.
        loaded: keeps the model for the next job; None: it goes with this one.
        progress: show the running scores; quiet: as plain lines.

    Raises:
        Exception: whatever ends the attempt besides wrong input; records are kept.
    """
    try:
        if place.processes > 1:
            _do_together(job, place, folder, command)
        else:
            _measure(job, place, folder, Process(), loaded or Loaded(), progress, quiet, command)
    except UserError as error:
        return Result(" ".join(str(error).split()), final=True)
    return _failed_samples(folder)


def _measure(
    job: Job,
    place: Place,
    folder: Path,
    process: Process,
    loaded: Loaded,
    progress: bool,
    quiet: bool,
    command: str,
) -> None:
    from catekv.evaluation.run.runner import evaluate
    from catekv.evaluation.run.session import settings_for

    load_plugins(job.request.plugins)
    model = loaded.model(job, process)
    settings = settings_for(job.request, model).with_methods(job.specs)
    evaluate(
        model,
        dataclasses.replace(settings, prefill=place.prefill),
        folder,
        process=process,
        progress=progress,
        quiet=quiet,
        max_errors=job.request.max_errors,
        command=command,
    )


def _failed_samples(folder: Path) -> Result:
    records = RunDirectory(folder).records().values()
    failed = [record for record in records if record.error is not None and not record.skipped]
    if not failed:
        return Result()
    error = failed[0].error or {}
    reason = " ".join(f"{error.get('type')}: {error.get('message')}".split())
    return Result(f"{len(failed)} of {len(records)} measurements failed, the first with {reason}")


def _do_together(job: Job, place: Place, folder: Path, command: str) -> None:
    """One process per GPU; they share the model, and the first writes."""
    import torch.multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (place.processes, port, job, place, folder, command)
    try:
        torch.multiprocessing.start_processes(
            _shared_process, arguments, place.processes, start_method="spawn"
        )
    except torch.multiprocessing.ProcessRaisedException as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        name, _, message = lines[-1].partition(": ")
        if name.endswith("UserError"):
            raise UserError(message) from error
        raise


def _shared_process(
    rank: int, world: int, port: int, job: Job, place: Place, folder: Path, command: str
) -> None:
    _end_with_parent()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with process_group(TENSOR) as process:
        _measure(job, place, folder, process, Loaded(), False, True, command)


def _end_with_parent() -> None:
    """A killed worker must not leave processes behind that hold the run directory."""
    import ctypes
    import signal
    import sys

    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
