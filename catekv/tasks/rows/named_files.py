"""Official files whose rows do not name their task: the name of the file or a folder does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError


@dataclass(frozen=True)
class NamedFiles:
    """The files of a family.

    Attributes:
        title: name of the family in messages.
        prefix: of its tasks' full names, e.g. ``"zeroscrolls/"``.
        names: its tasks, without the prefix.
        fields: those that every row has.
        folders: whether a folder may be named after the task instead of the file.
    """

    title: str
    prefix: str
    names: Collection[str]
    fields: frozenset[str]
    folders: bool = False

    def task_of_path(self, path: Path) -> str | None:
        """The task, without the prefix, that a name is, starts with or ends with."""
        places = (path.stem, *reversed(path.parts[:-1])) if self.folders else (path.stem,)
        for place in places:
            for name in sorted(self.names, key=len, reverse=True):  # a long one may hold another
                if place == name or place.startswith(f"{name}_") or place.endswith(f"_{name}"):
                    return name
        return None

    def task(self, path: Path, asked: str | None) -> str:
        """The task that was asked for, else that of the path; without the prefix.

        Raises:
            UserError: there is none.
        """
        name = (asked or self.task_of_path(path) or "").removeprefix(self.prefix)
        if name not in self.names:
            raise UserError(f"{path}: the path holds no {self.title} task; pass task=")
        return name

    def recognise(self, row: Mapping[str, Any], path: Path) -> str | None:
        """The full name of the task of a file with such a row; None if it is not of the family."""
        name = self.task_of_path(path) if self.fields <= row.keys() else None
        return self.prefix + name if name else None
