"""Parts of a data set as they are written in the published commands: ``test[:100]``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from catekv.errors import UserError

Item = TypeVar("Item")
_NUMBER = r"(-?\d+%?)?"
_SPLIT = re.compile(rf"(?P<name>[A-Za-z_]\w*)(?:\[{_NUMBER}:{_NUMBER}\])?")


@dataclass(frozen=True)
class Split:
    """A split and the part of it that is wanted.

    ``start`` and ``stop`` are what stands around the colon: a number of rows, negative from the
    end, or a percentage (``10%``); None where nothing stands.
    """

    name: str
    start: str | None = None
    stop: str | None = None

    @staticmethod
    def parse(text: str) -> Split:
        """``NAME``, ``NAME[:8]``, ``NAME[8:16]``, ``NAME[-8:]``, ``NAME[:10%]``.

        Raises:
            UserError: anything else.
        """
        found = _SPLIT.fullmatch(text.strip())
        if found is None:
            raise UserError(f"split {text!r} is not understood; write it like test[:100]")
        return Split(found["name"], found[2], found[3])

    @property
    def least_rows(self) -> int | None:
        """Rows that are enough to take the part from; None if their whole number matters."""
        bounds = (self.start or "0", self.stop)
        if any(bound is None or bound.endswith("%") or bound.startswith("-") for bound in bounds):
            return None
        return int(str(self.stop))

    def range(self, rows: int) -> range:
        """Positions of the wanted rows among ``rows``."""
        start = 0 if self.start is None else _position(self.start, rows)
        stop = rows if self.stop is None else _position(self.stop, rows)
        return range(rows)[start:stop]

    def take(self, items: Sequence[Item], what: str) -> list[Item]:
        """The wanted items.

        Raises:
            UserError: there are none.
        """
        taken = [items[index] for index in self.range(len(items))]
        if not taken:
            raise UserError(
                f"split {self} of {what} holds no row of the {len(items)} that there are; ask for "
                f"others, for example {self.name}[:8]"
            )
        return taken

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.name
        return f"{self.name}[{self.start or ''}:{self.stop or ''}]"


def _position(bound: str, rows: int) -> int:
    if not bound.endswith("%"):
        return int(bound)
    share = round(rows * int(bound[:-1]) / 100)
    # from the end also where the share is less than a row; more than everything is everything
    return max(0, rows + share) if bound.startswith("-") else share
