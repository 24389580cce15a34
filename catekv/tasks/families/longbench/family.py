"""LongBench as a family of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import Family, Task
from catekv.tasks.families.longbench import v1, v2
from catekv.tasks.families.longbench.mini import is_mini
from catekv.tasks.families.longbench.options import ChoiceOptions, LongBenchOptions
from catekv.tasks.families.longbench.scoring import score, score_choice
from catekv.tasks.families.longbench.table import (
    EVEN_PREFIX,
    FULL_NAMES,
    PREFIX,
    SECOND,
    TASKS,
    facts,
)
from catekv.tasks.metrics.longbench_tables import EVEN


def _task(name: str) -> Task:
    if name == SECOND:
        return Task(
            name=name,
            options=ChoiceOptions(),
            max_new_tokens=v2.ANSWER,
            metric="accuracy",
            generate=v2.generate,
            score=score_choice,
            natural=True,
        )
    known = facts(name)
    return Task(
        name=name,
        options=LongBenchOptions(),
        max_new_tokens=known.new_tokens,
        metric=known.metric,
        generate=v1.generate,
        score=score,
        natural=True,
    )


def read(path: Path, task: str | None, **options: Any) -> list[Sample]:
    """Samples of an official file; see :func:`v1.read` and :func:`v2.read`."""
    name = task or SECOND
    reader = v2.read if name == SECOND else v1.read
    return reader(path, name, **options)


def recognise(row: dict[str, Any], path: Path) -> str | None:
    """The task that a file's fields and name say."""
    if v2.recognised(row, path):
        return SECOND
    if is_mini(row):
        stem = path.stem.rpartition("MiniLongBench_")[2]
        return PREFIX + stem if stem in TASKS else None
    if not {"context", "input", "answers", "all_classes"} <= set(row):
        return None
    named = str(row.get("dataset") or path.stem)
    name = named.removesuffix("_e")
    even = (named != name or path.stem.endswith("_e")) and name in EVEN
    return (EVEN_PREFIX if even else PREFIX) + name if name in TASKS else None


FAMILY = Family("longbench", tuple(map(_task, FULL_NAMES)), read, recognise, rank=1)
