"""The command ``catekv sweep``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.commands.arguments import PLUGINS, PROGRESS
from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation import tables
from catekv.evaluation.options import REQUIRED, option
from catekv.evaluation.plugins import load_plugins
from catekv.evaluation.records import locks
from catekv.evaluation.sweep import serial
from catekv.evaluation.sweep.board import Board
from catekv.evaluation.sweep.cluster import LOCAL, Cluster, Tick
from catekv.evaluation.sweep.grid import Grid, read_grid
from catekv.evaluation.sweep.jobs import make_jobs
from catekv.evaluation.sweep.placement import Place, place_all
from catekv.evaluation.sweep.state import FAILED, FINISHED, SweepState, count_records
from catekv.files import read_fields

RESULTS = Path("results")
DEFAULT_RETRIES = 2


@dataclass(frozen=True)
class Swept:
    """Which grid is measured, where."""

    grid: Path = option(REQUIRED, "YAML file; see docs/sweeps.md", positional=True, metavar="GRID")
    ray: str | None = option(
        None,
        "run jobs side by side on Ray: local, auto, or the address of a cluster (default: one "
        "after another in this process)",
        metavar="WHERE",
    )
    output: Path | None = option(None, "folder of the sweep (default: results/sweep-GRID)")
    dry_run: bool = option(False, "show the jobs and where they would run, no more")
    max_retries: int = option(
        DEFAULT_RETRIES,
        "times that a job which failed is tried again, where it stopped (default: {default})",
        metavar="N",
    )


SWEPT = Group(Swept)
OPTIONS = (SWEPT, PLUGINS, PROGRESS)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if a job failed."""
    asked = SWEPT.read(arguments)
    grid = read_grid(asked.grid)
    if arguments.plugins:
        plugins = (*grid.settings.get("plugins", ()), *arguments.plugins)
        grid = dataclasses.replace(grid, settings={**grid.settings, "plugins": plugins})
    return sweep(
        grid,
        asked.output or RESULTS / f"sweep-{asked.grid.stem}",
        ray=asked.ray,
        dry_run=asked.dry_run,
        max_retries=asked.max_retries,
        quiet=arguments.quiet,
        command=arguments.command_line,
    )


def _check_retries(max_retries: int) -> None:
    if max_retries < 0:
        raise UserError(f"--max-retries {max_retries} is negative; give 0 or more")


def sweep(
    grid: Grid,
    output: Path,
    *,
    ray: str | None = None,
    dry_run: bool = False,
    max_retries: int = DEFAULT_RETRIES,
    quiet: bool = False,
    command: str = "",
    cpus: int | None = None,
    watch: Callable[[Tick], None] | None = None,
) -> int:
    """Measure everything in a grid that the sweep's folder does not hold yet, and report on it.

    Args:
        output: folder of the sweep; ``sweep.json`` in it lists the run directories.
        ray: ``local``, ``auto`` or an address; None: jobs run one after another in this process.
        cpus: cores of a local Ray. watch: see :meth:`Cluster.run`.

    Returns:
        0, or 1 if a job failed; the others are done then.

    Raises:
        UserError: a grid, model, mask or folder that cannot be used, or a job that fits nowhere.
            Nothing has been measured then.
    """
    from transformers.utils import logging

    _check_retries(max_retries)
    # notes on how a configuration could be written would stand between the user and the plan
    logging.set_verbosity_error()
    load_plugins(grid.settings.get("plugins", ()))
    jobs = make_jobs(grid)
    state = SweepState(output, jobs)
    with ExitStack() as held:

        def begin(places: dict[str, Place]) -> bool:
            """Note the start, or only show what would be done; returns whether to go on."""
            if dry_run:
                print(_table(state, places))
                return False
            held.enter_context(locks.claimed(output))
            state.start(grid, places, command, ray)
            return True

        if ray is None:
            if not begin(place_all(jobs, serial.this_machine(), grid.placement)):
                return 0
            serial.run(state, max_retries, quiet, command)
        elif ray == LOCAL and not dry_run and not state.open_jobs():
            # nothing to do is no reason to start anything
            begin({})
        else:
            with Cluster(ray, cpus) as cluster:
                if not begin(place_all(jobs, cluster.machines(), grid.placement)):
                    return 0
                cluster.check_folder(output)
                with Board(state, quiet) as board:
                    cluster.run(state, max_retries, board, command, watch)
        return _end(state)


def _table(state: SweepState, places: dict[str, Place]) -> str:
    rows = []
    for name, job in state.jobs.items():
        done = min(count_records(state.path(name)), job.measurements)
        left = "finished" if state.entries[name].state == FINISHED else f"{done} recorded"
        rows.append([name, str(job.measurements), left, str(places[name]), places[name].prefill])
    columns = ["job", "measurements", "now", "place", "prefill"]
    return tables.plain_table(columns, rows)


def _end(state: SweepState) -> int:
    """Print the joined table and what failed; write the report of all runs."""
    from catekv.evaluation.report import report

    problems: list[str] = []
    table = _joined(state)
    if table:
        print(table)
        written = report.report_on([state.folder])
        names = ", ".join(file.name for file in written.files if file.parent == state.folder)
        print(f"Results: {state.folder} ({names}, sweep.json; a folder per run in runs/)")
        problems = written.problems
    for problem in problems:
        print(f"left out of the report: {problem}", file=sys.stderr)
    failed = [name for name, entry in state.entries.items() if entry.state == FAILED]
    for name in failed:
        print(f"error: job {name} failed: {state.entries[name].error}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(state.jobs)} jobs failed; the same command tries them again",
            file=sys.stderr,
        )
    return 1 if failed or problems else 0


def _joined(state: SweepState) -> str:
    """Scores of all finished jobs in one table: a row per job and question, a column per method."""
    labels = list(dict.fromkeys(s.label for job in state.jobs.values() for s in job.specs))
    rows = []
    for name, job in state.jobs.items():
        scores = _scores(state, name)
        for question in job.request.questions if scores else ():
            found = [scores.get((question, label)) for label in labels]
            suffix = f", {question}" if len(job.request.questions) > 1 else ""
            rows.append([name + suffix, *(cell or "-" for cell in found)])
    return tables.plain_table(["score x 100", *labels], rows) if rows else ""


def _scores(state: SweepState, name: str) -> dict[tuple[str, str], str]:
    """Mean official scores x 100 of a run, by question and method, marked where samples lack."""

    from catekv.evaluation.report.summary_text import score

    file = state.path(name) / "summary.json"
    if not file.is_file():
        return {}
    remedy = f"write it anew with `catekv report {file.parent}`"
    cells: list[dict[str, Any]] = read_fields(file, remedy, cells=list)["cells"]
    try:
        return {
            (cell["question"], cell["method"]): score(cell)
            for cell in cells
            if cell.get("official")
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: its cells are damaged; {remedy}") from error
