"""Options of GraphWalks."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.tasks.core.task import at_least_one
from catekv.tasks.rows.sources import DataOptions


@dataclass(frozen=True, kw_only=True)
class WalkOptions(DataOptions):
    """Options of drawn graphs besides :class:`DataOptions`.

    Attributes:
        depth: largest depth of a search.
        largest: nodes of the largest answer.
    """

    depth: int = 4
    largest: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "depth", "largest")
