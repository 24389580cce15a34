"""What generated rows have in common: one shape, and growth that keeps what is there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.families.longbench.rows import LongRow
from catekv.tasks.rows.sources import BUILT_IN
from catekv.tasks.wording.hay import insert

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts


class Draws:
    """The random generators of one sample, one per purpose."""

    def __init__(self, random: Callable[[str], Random]) -> None:
        self.random = random

    def seed(self, purpose: str) -> tuple[object, ...]:
        """A seed for generators that make their own streams."""
        return (purpose, self.random(purpose).getrandbits(64))


class RowPlan(ABC):
    """A generated row with all its draws made; only the length of its context is open."""

    minimum: int = 1

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    @abstractmethod
    def row(self, units: int) -> LongRow:
        """The row with so many units; equal units give equal rows."""

    def fitting(self) -> Plan:
        """The row as a prompt of any length."""
        return Plan(lambda units, extra: self.prompts.own(self.row(units)).parts, self.minimum)

    def made(
        self, context: str, asked: str, answers: Sequence[str], all_classes: Sequence[str] = ()
    ) -> LongRow:
        """A row as LongBench lays it out; its length counts words, or characters in Chinese."""
        facts = self.prompts.facts
        length = len(context) if facts.language == "zh" else len(context.split())
        fields = {
            "input": asked,
            "context": context,
            "answers": list(answers),
            "length": length,
            "dataset": facts.name,
            "language": facts.language,
            "all_classes": list(all_classes) or None,
        }
        return LongRow(BUILT_IN, context, asked, tuple(answers), length, tuple(all_classes), fields)


class Pile:
    """Fixed texts at drawn places among as many others as are wanted.

    Growing inserts texts; those already there keep their order.
    """

    def __init__(
        self,
        fixed: Sequence[str],
        others: Iterator[str],
        random: Random,
        first: Sequence[str] = (),
        *,
        ordered: bool = False,
    ) -> None:
        """``first``: others to take before the endless ones; ``ordered``: keep the fixed order."""
        places = [random.random() for _ in fixed]
        self._fixed = list(zip(sorted(places) if ordered else places, fixed, strict=True))
        self._others, self._source, self._random = list(first), others, random
        self._ranks: list[float] = []

    def texts(self, count: int) -> list[str]:
        """The fixed texts and ``count`` others."""
        while len(self._others) < count:
            self._others.append(next(self._source))
        while len(self._ranks) < count:
            self._ranks.append(self._random.random())
        ranked = sorted(zip(self._ranks[:count], range(count), strict=True))
        return insert([self._others[place] for _, place in ranked], self._fixed)
