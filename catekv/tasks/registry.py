"""The families of tasks, and tasks by name.

A family is a folder of :mod:`catekv.tasks.families` whose ``family.py`` has a ``FAMILY``: it is
known because its folder is there.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from catekv.errors import UserError
from catekv.tasks import families as _families
from catekv.tasks.core.task import Family, Task

#: names of RULER's tasks may be given without the family
_SHORT = "ruler/"
_REGISTERED: dict[str, Family] = {}


@functools.cache
def _built_in() -> tuple[Family, ...]:
    """The families of the package, by rank and name."""
    found = [
        family_in(f"{_families.__name__}.{folder.name}")
        for folder in pkgutil.iter_modules(_families.__path__)
        if folder.ispkg
    ]
    return tuple(sorted(found, key=lambda family: (family.rank, family.name)))


def family_in(package: str) -> Family:
    """The family of a package, which its module ``family`` calls ``FAMILY``.

    Raises:
        UserError: there is none, or it has no tasks.
    """
    family = getattr(importlib.import_module(f"{package}.family"), "FAMILY", None)
    if not isinstance(family, Family):
        raise UserError(
            "family.py has no FAMILY; add FAMILY = Family(name, (Task(...), ...)) from "
            "catekv.tasks.core.task"
        )
    if not family.tasks:
        raise UserError(f"family {family.name!r} has no tasks; add at least one Task")
    return family


def register(family: Family) -> Family:
    """Make a family known that is no folder of the package.

    Raises:
        UserError: another family has one of its names.
    """
    taken = {known.name for known in families()} | set(all_tasks())
    for name in (family.name, *(task.name for task in family.tasks)):
        if name in taken:
            raise UserError(f"a family or task is called {name!r} already; choose another name")
    _REGISTERED[family.name] = family
    return family


def families() -> tuple[Family, ...]:
    """All families: those of the package, then those that were registered."""
    return (*_built_in(), *_REGISTERED.values())


def all_tasks() -> dict[str, Task]:
    """Every task by its full name, family after family."""
    return {task.name: task for family in families() for task in family.tasks}


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
    return next(family for family in families() if task in family.tasks)
