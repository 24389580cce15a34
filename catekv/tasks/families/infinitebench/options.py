"""Options of the InfiniteBench tasks."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.families.ruler.plan import Depth
from catekv.tasks.rows.sources import DataOptions

#: what ``math_find`` can ask for; samples take turns
KINDS = ("largest", "smallest", "second largest", "third largest", "median")


@dataclass(frozen=True, kw_only=True)
class HiddenOptions(DataOptions):
    """Options of a task whose answer stands at one place of a text that is drawn anew.

    Attributes:
        depth: where the answer stands: ``sweep`` (every sample at another depth, and the first n
            samples spread evenly for any n), or a number from 0 (start) to 1 (end).
    """

    depth: Depth = "sweep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth != "sweep" and (isinstance(self.depth, str) or not 0 <= self.depth <= 1):
            raise UserError(f"depth={self.depth!r}; use 'sweep' or a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class FindOptions(DataOptions):
    """Options of ``math_find``: ``kind`` is one of :data:`KINDS`, or ``all`` in turns."""

    kind: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "all" and self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r}; use 'all' or one of {', '.join(KINDS)}")


@dataclass(frozen=True, kw_only=True)
class CodeOptions(DataOptions):
    """Options of ``code_run``: ``calls`` functions lie one behind the other."""

    calls: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calls < 1:
            raise UserError(f"calls={self.calls}; at least one function must be called")


def swept_depth(depth: Depth, index: int) -> float:
    """The depth of a sample, 0 to 1.

    ``sweep`` mirrors the binary digits of the index at the point (van der Corput's sequence): no
    depth comes twice, and the first 2 ** k samples lie evenly spaced.
    """
    if depth != "sweep":
        return float(depth)
    place, step = 0.0, 0.5
    while index:
        place += step * (index & 1)
        index >>= 1
        step /= 2
    return place
