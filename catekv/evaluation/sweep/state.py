"""What a sweep's folder says of its jobs: ``sweep.json``, written after every change."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.records import environment
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.sweep.grid import Grid
from catekv.evaluation.sweep.jobs import RUNS, Job
from catekv.evaluation.sweep.placement import Place
from catekv.files import read_fields, write_json

FILE = "sweep.json"
WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"
#: the reason of a job that waits because the command was stopped
INTERRUPTED = "interrupted"


@dataclass
class Entry:
    """One job as the sweep's file shows it.

    ``attempts`` are those of the last command. ``records`` is how many lines its run directory had
    when the job finished, ``hash`` which job that was.
    """

    state: str = WAITING
    attempts: int = 0
    error: str = ""
    hash: str = ""
    records: int = 0


class SweepState:
    """The jobs of a sweep and how far they are.

    Args:
        folder: of the sweep. jobs: all of the grid.

    Raises:
        UserError: the folder holds a ``sweep.json`` that is none, or cannot be written.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        self.folder = folder
        self.jobs = {job.name: job for job in jobs}
        self.entries = {job.name: Entry() for job in jobs}
        self.places: Mapping[str, Place] = {}
        self._head: dict[str, Any] = {}
        earlier = self._read()
        self._starts: list[dict[str, Any]] = list(earlier.get("starts", []))
        for run in earlier.get("runs", []):
            job = self.jobs.get(run["name"])
            if job is None or run.get("state") != FINISHED or run.get("hash") != job.hash:
                continue
            if count_records(self.path(job.name)) >= run.get("records", 0) > 0:
                self.entries[job.name] = Entry(FINISHED, hash=job.hash, records=int(run["records"]))

    def _read(self) -> dict[str, Any]:
        file = self.folder / FILE
        if not file.exists():
            return {}
        try:
            content = read_fields(file, runs=list)
            for run in content["runs"]:
                if not isinstance(run["name"], str) or not isinstance(run.get("records", 0), int):
                    raise TypeError("no list of runs")
            if not isinstance(content.get("starts", []), list):
                raise TypeError("no list of starts")
            return content
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read as a sweep's; delete it (finished records are kept in "
                f"{RUNS}/) or choose another folder with --output"
            ) from error

    def path(self, name: str) -> Path:
        """The run directory of a job."""
        return self.folder / RUNS / name

    def open_jobs(self) -> list[Job]:
        """Jobs that are not finished, in order."""
        return [job for name, job in self.jobs.items() if self.entries[name].state != FINISHED]

    def count(self, state: str) -> int:
        return sum(entry.state == state for entry in self.entries.values())

    def start(self, grid: Grid, places: Mapping[str, Place], command: str, ray: str | None) -> None:
        """Note that a command begins, and write the file for the first time."""
        self.places = places
        self._head = {
            "format": 1,
            "grid": grid.to_dict(),
            "versions": environment.versions(),
            "git_commit": environment.git_commit(),
        }
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._starts.append({"time": now, "command": command, "ray": ray})
        self.write()

    def begin(self, job: Job) -> None:
        """An attempt at a job begins."""
        entry = self.entries[job.name]
        entry.state, entry.attempts = RUNNING, entry.attempts + 1
        self.write()

    def wait(self, job: Job, reason: str) -> None:
        """An attempt failed; another one follows."""
        entry = self.entries[job.name]
        entry.state, entry.error = WAITING, reason
        self.write()

    def finish(self, job: Job) -> None:
        """All of a job is measured."""
        entry = self.entries[job.name]
        entry.state, entry.error, entry.hash = FINISHED, "", job.hash
        entry.records = count_records(self.path(job.name))
        self.write()

    def fail(self, job: Job, reason: str) -> None:
        """A job is given up."""
        entry = self.entries[job.name]
        entry.state, entry.error = FAILED, reason
        self.write()

    def write(self) -> None:
        """Write ``sweep.json`` in one step."""
        runs = [self._run(job) for job in self.jobs.values()]
        content = {**self._head, "starts": self._starts, "runs": runs}
        write_json(self.folder / FILE, content)

    def _run(self, job: Job) -> dict[str, Any]:
        entry, place = self.entries[job.name], self.places.get(job.name)
        found: dict[str, Any] = {
            "name": job.name,
            "path": f"{RUNS}/{job.name}",
            "model": job.model,
            "task": job.task,
            "length": job.length,
            "seed": job.seed,
            "dtype": job.dtype,
            "methods": [spec.label for spec in job.specs],
            "measurements": job.measurements,
            "state": entry.state,
            "attempts": entry.attempts,
            "hash": job.hash,
            "records": entry.records,
        }
        if entry.error:
            found["error"] = entry.error
        if place is not None:
            found["place"] = {
                "kind": place.kind,
                "gpus": place.gpus,
                "cpus": place.cpus,
                "needed_bytes": place.needed_bytes,
                "prefill": place.prefill,
            }
        return found


def count_records(folder: Path) -> int:
    """Whole lines in the record files of a run directory."""
    total = 0
    for file in RunDirectory(folder).sample_files():
        try:
            total += file.read_bytes().count(b"\n")
        except OSError:
            # between looking and reading, the processes' files may have been merged
            continue
    return total
