"""Distinct items on demand whose order does not depend on how many are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from catekv.tasks.core.randomness import generator

_BLOCK = 128
#: blocks in a row without a new item after which a source counts as used up
_FRUITLESS = 4


class Pool:
    """Items drawn in blocks, each block with a generator of its own.

    Growing the pool never changes the items that it already gave, so a text can be lengthened
    while its beginning stays what it was. A source with ``capacity`` items is drawn at once.
    """

    def __init__(
        self,
        draw: Callable[[int, Random], list[str]],
        seed: object,
        capacity: int | None = None,
        taken: Iterable[str] = (),
    ) -> None:
        self._draw, self._seed, self._capacity = draw, seed, capacity
        self._seen = set(taken)
        self._items: list[str] = []
        self._blocks = self._fruitless = 0

    def first(self, count: int) -> list[str]:
        """The first ``count`` items, or all if there are fewer."""
        while len(self._items) < count and not self._used_up():
            random = generator(self._seed, self._blocks)
            block = self._draw(_BLOCK if self._capacity is None else self._capacity, random)
            fresh = [item for item in dict.fromkeys(block) if item not in self._seen]
            self._seen.update(fresh)
            self._items.extend(fresh)
            self._blocks += 1
            self._fruitless = 0 if fresh else self._fruitless + 1
        return self._items[:count]

    def _used_up(self) -> bool:
        if self._capacity is not None:
            return self._blocks > 0
        return self._fruitless >= _FRUITLESS
