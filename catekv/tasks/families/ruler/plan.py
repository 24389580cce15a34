"""What every RULER task shares: the request for one sample, drafts of it, positions in the hay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from catekv.errors import UserError
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.wording import Wording

Depth: TypeAlias = "float | str"
#: depths that ``depth="grid"`` walks through, sample by sample
DEPTH_GRID = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Request:
    """One sample to be drawn: everything random follows from ``key`` and ``index``."""

    key: tuple[object, ...]
    index: int
    #: tokens of prompt and answer together
    length: int
    wording: Wording
    #: tokens of a piece of plain text
    tokens: Callable[[str], int]

    def random(self, purpose: str) -> Random:
        """A generator for one purpose of this sample."""
        return generator(*self.key, self.index, purpose)

    def shared_random(self, purpose: str) -> Random:
        """A generator that all samples of one (seed, task, length, stream) have in common."""
        return generator(*self.key, purpose)

    def seed(self, purpose: str) -> tuple[object, ...]:
        """Seed of a source that makes generators of its own."""
        return (*self.key, self.index, purpose)


@dataclass(frozen=True, kw_only=True)
class RulerOptions:
    """What every task of RULER can be asked for.

    Attributes:
        begin_answer: the prompt ends with the beginning of the answer, which stops refusals. False
            leaves it out, for chat interfaces that cannot continue an answer and for models that
            think first.
    """

    begin_answer: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.begin_answer, bool):
            raise UserError(f"begin_answer={self.begin_answer!r}; use true or false")


@dataclass(frozen=True)
class Draft:
    """A prompt of some length.

    ``marks`` are the texts whose places are the answers' depths; ``notes`` is recorded with the
    sample.
    """

    context: str
    question: str
    answer_prefix: str
    marks: tuple[str, ...] = ()
    notes: dict[str, object] = field(default_factory=dict)

    def depths(self) -> tuple[float, ...]:
        """Relative position of every mark in the context, 0 to 1."""
        places = []
        for mark in self.marks:
            place = self.context.rfind(mark)
            assert place >= 0, f"the answer {mark!r} is not in the context"
            places.append(place / len(self.context))
        return tuple(places)


class Plan(ABC):
    """One sample with all its random draws made; only its length is still open.

    ``extra`` adds words of filler where one unit more would be too long, and 0 is always allowed;
    ``extra_limit`` is the largest number of them. ``data`` says where its texts come from:
    ``"built-in"``, or name and hash of a file.
    """

    outputs: tuple[str, ...]
    minimum: int = 1
    limit: int | None = None
    extra_limit: int = 0
    data: str = "built-in"

    @abstractmethod
    def draft(self, units: int, extra: int = 0) -> Draft:
        """The prompt with so many units; equal arguments give equal drafts."""


def check_depth(depth: Depth) -> None:
    """Raise ``UserError`` unless ``depth`` is "uniform", "grid" or a number from 0 to 1."""
    if depth in ("uniform", "grid"):
        return
    if isinstance(depth, str) or not 0 <= depth <= 1:
        raise UserError(f"depth={depth!r}; use 'uniform', 'grid' or a number from 0 to 1")


def fixed_depths(depth: Depth, count: int, index: int) -> list[float] | None:
    """Where ``count`` answers go, or None if they are to be drawn.

    The first stands at the depth; the others follow at equal distances up to the end.
    """
    if depth == "uniform":
        return None
    first = DEPTH_GRID[index % len(DEPTH_GRID)] if depth == "grid" else float(depth)
    return [first + (1 - first) * number / count for number in range(count)]
