"""Jobs side by side on Ray: this machine's cores and GPUs, or those of a cluster."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.sweep.board import Board
from catekv.evaluation.sweep.jobs import Job
from catekv.evaluation.sweep.placement import Machine, Place
from catekv.evaluation.sweep.state import INTERRUPTED, RUNNING, SweepState
from catekv.evaluation.sweep.work import Result, do

LOCAL = "local"
#: Ray's store for large results; ours are a few words.
_STORE_BYTES = 100 * 2**20
#: Seconds in which a machine of the cluster must answer.
_PATIENCE = 300.0
_TICK = 0.5


@dataclass(frozen=True)
class Tick:
    """What a watcher of a running sweep is told: records and the worker's process per job."""

    records: dict[str, int]
    workers: dict[str, int]


class Cluster:
    """A connection to Ray, made on entering and given up on leaving.

    Args:
        address: ``local`` (a Ray of this command's own), ``auto`` or an address.
        cpus: cores that a local Ray has; default: those of the machine.

    Raises:
        UserError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str, cpus: int | None = None) -> None:
        self.address = address
        self.cpus = cpus

    def __enter__(self) -> Cluster:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # GPUs of tasks that ask for none are hidden only where this is said
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "a sweep with --ray needs Ray; pip install 'catekv[ray]', or leave --ray out"
            ) from error
        self.ray: Any = ray
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self.address == LOCAL:
            options.update(
                num_cpus=self.cpus or os.cpu_count(),
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
            )
        else:
            options["address"] = self.address
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or ["no answer"])[0]
            raise UserError(
                f"cannot reach Ray at {self.address!r} ({reason}); start it with `ray start "
                "--head`, or use --ray local"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def machines(self) -> list[Machine]:
        """The machines of the cluster and what they have."""
        found = []
        for node in self.ray.nodes():
            if not node["Alive"]:
                continue
            resources = node["Resources"]
            name, cpus = node["NodeManagerHostname"], int(resources.get("CPU", 0))
            gpus = int(resources.get("GPU", 0))
            if gpus:
                memory = self._ask(node, _gpu_memory, num_gpus=0.01)
                found.append(Machine(name, "cuda", memory, cpus, gpus, node["NodeID"]))
            elif cpus:
                memory = int(resources.get("memory", 0))
                found.append(Machine(name, "cpu", memory, cpus, node=node["NodeID"]))
        if not found:
            raise UserError(f"Ray at {self.address!r} has neither cores nor GPUs to run jobs on")
        return found

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that some machine does not see: its records would be lost to us."""
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        if len(nodes) == 1:
            return
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / f".{uuid.uuid4().hex}"
        token.touch()
        try:
            for node in nodes:
                if not self._ask(node, _sees, str(token), num_cpus=0):
                    raise UserError(
                        f"machine {node['NodeManagerHostname']} does not see {folder}; give an "
                        "--output that all machines share"
                    )
        finally:
            token.unlink()

    def _ask(
        self, node: dict[str, Any], question: Callable[..., Any], *given: Any, **options: Any
    ) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self.ray.remote(question).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            **{"num_cpus": 0, **options},
        )
        try:
            return self.ray.get(task.remote(*given), timeout=_PATIENCE)
        except self.ray.exceptions.GetTimeoutError as error:
            raise UserError(
                f"machine {node['NodeManagerHostname']} did not answer within "
                f"{_PATIENCE / 60:.0f} minutes; free its GPUs or take it out of the cluster"
            ) from error

    def run(
        self,
        state: SweepState,
        max_retries: int,
        board: Board,
        command: str,
        watch: Callable[[Tick], None] | None = None,
    ) -> None:
        """Do all jobs that are not finished, as many at once as fit.

        A job whose worker died, or that failed in another way than by wrong input, is tried again
        up to ``max_retries`` times; its records are kept, so that it goes on where it stopped.

        Args:
            watch: called a few times a second with what is running.
        """
        workers = state.folder / "workers" / uuid.uuid4().hex
        workers.mkdir(parents=True, exist_ok=True)
        pending: dict[Any, Job] = {}
        turns: dict[tuple[str, ...], int] = {}

        def submit(job: Job) -> None:
            pending[self._submit(state, job, workers, turns, command)] = job

        try:
            for job in state.open_jobs():
                submit(job)
            while pending:
                ready, _ = self.ray.wait(list(pending), timeout=_TICK)
                running = _running(workers, state)
                for job in pending.values():
                    if job.name in running and state.entries[job.name].state != RUNNING:
                        state.begin(job)
                for reference in ready:
                    job = pending.pop(reference)
                    result = self._result(reference)
                    running.pop(job.name, None)
                    _mark(workers, job.name).unlink(missing_ok=True)
                    if state.entries[job.name].state != RUNNING:
                        state.begin(job)
                    entry = state.entries[job.name]
                    if not result.error:
                        state.finish(job)
                    elif result.final or entry.attempts > max_retries:
                        state.fail(job, result.error)
                    else:
                        state.wait(job, result.error)
                        submit(job)
                records = board.show(running)
                if watch is not None:
                    watch(Tick(records, running))
        finally:
            for reference, job in pending.items():
                self.ray.cancel(reference, force=True)
                if state.entries[job.name].state == RUNNING:
                    state.wait(job, INTERRUPTED)
            # a worker that is just being ended may still write here
            shutil.rmtree(workers, ignore_errors=True)

    def _submit(
        self,
        state: SweepState,
        job: Job,
        workers: Path,
        turns: dict[tuple[str, ...], int],
        command: str,
    ) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = state.places[job.name]
        options: dict[str, Any] = {"num_cpus": place.cpus, "max_retries": 0, "max_calls": 1}
        if place.kind == "cuda":
            options["num_gpus"] = place.gpus
        else:
            options["memory"] = place.memory_bytes
            # a worker that has loaded its libraries serves the next job
            options["max_calls"] = 0
        if place.nodes:
            turn = turns[place.nodes] = turns.get(place.nodes, -1) + 1
            node = place.nodes[turn % len(place.nodes)]
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        return self.ray.remote(**options)(_work).remote(
            job,
            place,
            str(state.path(job.name).resolve()),
            str(_mark(workers, job.name).resolve()),
            str(Path.cwd()),
            command,
        )

    def _result(self, reference: Any) -> Result:
        exceptions = self.ray.exceptions
        try:
            result: Result = self.ray.get(reference)
            return result
        except exceptions.WorkerCrashedError:
            return Result("the worker died")
        except exceptions.OutOfMemoryError:
            return Result("the machine ran out of memory and Ray ended the worker")
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            return Result(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        except exceptions.RayError as error:
            return Result(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _mark(workers: Path, name: str) -> Path:
    """The file by which a worker says that it is at a job; it holds the worker's process id."""
    return workers / name.replace("/", "~")


def _running(workers: Path, state: SweepState) -> dict[str, int]:
    """Process ids of the workers by the job that they are at."""
    found = {}
    for name in state.jobs:
        try:
            found[name] = int(_mark(workers, name).read_text())
        except (OSError, ValueError):
            # not begun, or just being written
            continue
    return found


def _work(job: Job, place: Place, folder: str, mark: str, directory: str, command: str) -> Result:
    """What a worker does."""
    Path(mark).write_text(f"{os.getpid()}\n")
    if Path(directory).is_dir():
        # paths of the grid are relative to where the sweep was started
        os.chdir(directory)
    import torch

    torch.set_num_threads(place.cpus)
    if place.kind == "cuda" and place.gpus < 1:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, place.memory_bytes / total))
    try:
        return do(job, place, Path(folder), command=command)
    finally:
        Path(mark).unlink(missing_ok=True)


def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def _sees(path: str) -> bool:
    return Path(path).exists()
