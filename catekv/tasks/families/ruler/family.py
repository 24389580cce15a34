"""RULER as a family of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catekv.tasks.core.task import Family
from catekv.tasks.families.ruler.building import PREFIX
from catekv.tasks.families.ruler.files import read, task_of_path
from catekv.tasks.families.ruler.tasks import TASKS


def recognise(row: dict[str, Any], path: Path) -> str | None:
    """RULER's rows name their task, or their path does."""
    named = str(row.get("task", "")).removeprefix(PREFIX)
    name = named if named in TASKS else task_of_path(path)
    return PREFIX + name if name else None


FAMILY = Family("ruler", tuple(TASKS.values()), read, recognise, rank=0)
