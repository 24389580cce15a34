"""The families of tasks, and tasks by name."""

from __future__ import annotations

from catekv.errors import UserError
from catekv.tasks.core.task import Family, Task
from catekv.tasks.families.graphwalks.family import FAMILY as GRAPHWALKS_FAMILY
from catekv.tasks.families.infinitebench.family import FAMILY as INFINITEBENCH_FAMILY
from catekv.tasks.families.longbench.family import FAMILY as LONGBENCH_FAMILY
from catekv.tasks.families.mrcr.family import FAMILY as MRCR_FAMILY
from catekv.tasks.families.niah.family import FAMILY as NIAH_FAMILY
from catekv.tasks.families.reasoning.family import FAMILY as REASONING_FAMILY
from catekv.tasks.families.ruler.family import FAMILY as RULER_FAMILY
from catekv.tasks.families.scbench.family import FAMILY as SCBENCH_FAMILY
from catekv.tasks.families.summarization.family import FAMILY as SUMMARIZATION_FAMILY
from catekv.tasks.families.synthetic.family import FAMILY as SYNTHETIC_FAMILY
from catekv.tasks.families.zeroscrolls.family import FAMILY as ZEROSCROLLS_FAMILY

FAMILIES: tuple[Family, ...] = (
    RULER_FAMILY,
    LONGBENCH_FAMILY,
    NIAH_FAMILY,
    SYNTHETIC_FAMILY,
    ZEROSCROLLS_FAMILY,
    INFINITEBENCH_FAMILY,
    SUMMARIZATION_FAMILY,
    GRAPHWALKS_FAMILY,
    MRCR_FAMILY,
    REASONING_FAMILY,
    SCBENCH_FAMILY,
)
#: names of RULER's tasks may be given without the family
_SHORT = "ruler/"


def all_tasks() -> dict[str, Task]:
    """Every task by its full name, family after family."""
    return {task.name: task for family in FAMILIES for task in family.tasks}


def available() -> list[str]:
    """Names of all tasks, e.g. ``"ruler/vt"``."""
    return list(all_tasks())


def find(name: str) -> Task:
    """A task by its name (RULER's also without ``ruler/``); ``UserError`` lists what exists."""
    tasks = all_tasks()
    task = tasks.get(name) or tasks.get(_SHORT + name)
    if task is None:
        raise UserError(f"unknown task {name!r}; available: {', '.join(tasks)}")
    return task


def family_of(task: Task) -> Family:
    """The family that a task belongs to."""
    return next(family for family in FAMILIES if task in family.tasks)
