"""Options of the ``synthetic`` task."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.core.task import at_least_one
from catekv.tasks.drawing.depths import Depths, read_depths

#: percent of the paragraphs before the one with the code
NAMED = {"early": 5.0, "middle": 50.0, "late": 95.0}


@dataclass(frozen=True)
class SyntheticOptions:
    """Where the paragraph with the code stands.

    Attributes:
        depths: percent of the paragraphs before it: the names early (5), middle (50) and late (95),
            or a number of evenly spaced depths, ``linear:FIRST:LAST:N``, ``sigmoid:N``, or the
            depths in percent: ``0,50,100``.
        rounds: samples of one depth that follow each other; further samples are further rounds.
        compat: the published form: fixed codes and filler, cut to the length by the published rule
            even where that loses the code. For regression tests; ``depths`` and ``rounds`` do not
            count then.
    """

    depths: Depths = "early,middle,late"
    rounds: int = 1
    compat: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "rounds")
        if not isinstance(self.compat, bool):
            raise UserError(f"compat={self.compat!r}; use true or false")
        self.percents()

    def percents(self) -> tuple[float, ...]:
        """The depths as numbers, in the order of the samples."""
        if not isinstance(self.depths, str):
            return read_depths(self.depths)
        words = (word.strip() for word in self.depths.split(","))
        return read_depths(",".join(str(NAMED.get(word, word)) for word in words))
