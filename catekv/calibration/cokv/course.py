"""How the two runs of a game come to agree, block by block, from what all processes found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from catekv.calibration.cokv.drawing import RUNS
from catekv.calibration.cokv.game import Agreement, Sums, compare, scores
from catekv.calibration.cokv.journal import BOUNDS, Plan, Shard


@dataclass
class Course:
    """Sums of all processes, block by block, and how well the two runs agree.

    Attributes:
        sums: by (run, slice), up to the last block that all processes have finished.
        blocks: their number. agreements: after every block.
        bounds: utility of the full and of the empty coalition, once known.
    """

    plan: Plan
    sums: dict[tuple[str, int], Sums] = field(default_factory=dict)
    blocks: int = 0
    agreements: list[Agreement] = field(default_factory=list)
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for run in RUNS:
            for size in self.plan.slices:
                self.sums[run, size] = Sums.empty(self.plan.players, size)

    @property
    def draws(self) -> int:
        """Draws of every slice and run."""
        return self.blocks * self.plan.per_block

    def run(self, name: str) -> tuple[Sums, ...]:
        return tuple(self.sums[name, size] for size in self.plan.slices)

    def follow(self, shards: Sequence[Shard], tolerance: float | None, most: int) -> bool:
        """Take over further blocks that all shards have finished, until the runs agree or ``most``
        blocks are in. The same shards give the same result however far some are ahead.

        Returns:
            Whether it is over.
        """
        for shard in shards:
            full, empty = self.plan.coalitions(BOUNDS, 0)
            if shard.part == 0 and full.tobytes() in shard.known:
                self.bounds = shard.known[full.tobytes()], shard.known[empty.tobytes()]
        while not self.over(most) and all(not _unknown(shard, self.blocks) for shard in shards):
            for shard in shards:
                for draw in self.plan.draws(self.blocks, shard.part):
                    members = draw.members(self.plan.seed, self.plan.players)
                    worth = shard.known[members.tobytes()] - shard.known[(~members).tobytes()]
                    key = draw.run, draw.size
                    self.sums[key] = self.sums[key].plus(members, worth)
            self.blocks += 1
            first, second = (scores(self.run(run)) for run in RUNS)
            self.agreements.append(compare(first, second, tolerance))
        return self.over(most)

    def over(self, most: int) -> bool:
        reached = bool(self.agreements) and self.agreements[-1].reached
        return reached or self.blocks >= most


def _unknown(shard: Shard, block: int) -> bool:
    return any(one.tobytes() not in shard.known for one in shard.plan.coalitions(block, shard.part))
