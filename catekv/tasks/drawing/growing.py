"""Lists of drawn items that keep their beginning while they grow."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Growing(Generic[Item]):
    """Items drawn one after the other, so that a longer list starts like a shorter one."""

    def __init__(self, draw: Callable[[Random], Item], random: Random) -> None:
        self._draw, self._random = draw, random
        self._items: list[Item] = []

    def first(self, count: int) -> list[Item]:
        """The first ``count`` items."""
        while len(self._items) < count:
            self._items.append(self._draw(self._random))
        return self._items[:count]
