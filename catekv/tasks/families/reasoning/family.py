"""Reasoning as a family: problems with one answer, and exercises with long answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing.drawn_samples import fitted
from catekv.tasks.families.reasoning import problems, small, steps
from catekv.tasks.families.reasoning.problems import PREFIX, SOURCES
from catekv.tasks.rows.named_files import NamedFiles
from catekv.tasks.rows.sources import DataOptions, file_rows

FILES = NamedFiles("reasoning", PREFIX, tuple(SOURCES), frozenset({"answer"}), folders=True)
#: new tokens of exercises where nothing else says how many
_NEW_TOKENS = 512


def _exercises(request: BuildRequest) -> Iterator[Sample]:
    if request.options.path is not None or request.options.source not in ("auto", "built-in"):
        raise UserError(f"{request.task.name} is always generated; leave out path= and source=")
    for index in range(request.first, request.first + request.count):
        yield fitted(request, index, steps.plan(request, index))


def recognise(row: Mapping[str, Any], path: Path) -> str | None:
    return FILES.recognise(row, path) if {"problem", "question"} & row.keys() else None


def read(path: Path, name: str | None = None) -> list[Sample]:
    """Samples of a file of problems whose name, or task, says which they are."""
    task = FILES.task(path, name)
    rows = file_rows(path)
    parsed = rows.parsed(lambda position, row: problems.row_parts(task, position, row))
    return [
        unfitted(PREFIX + task, "boxed", position, parts) for position, parts in enumerate(parsed)
    ]


def _problem(name: str) -> Task:
    return Task(
        name=PREFIX + name,
        options=DataOptions(),
        max_new_tokens=SOURCES[name][2],
        metric="boxed",
        generate=problems.generate,
        score=problems.score,
        natural=True,
        small=False,
    )


def _exercise(name: str) -> Task:
    return Task(
        name=PREFIX + name,
        options=DataOptions(),
        max_new_tokens=_NEW_TOKENS,
        metric="lines",
        generate=_exercises,
        score=steps.score,
        small=name in small.EXERCISES,
    )


TASKS = (*map(_problem, SOURCES), *map(_exercise, steps.EXERCISES))
FAMILY = Family("reasoning", TASKS, read, recognise)
