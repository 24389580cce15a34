"""Which coalitions are looked at: seeded, the same in any order and on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from catekv.calibration.cokv.game import Members
from catekv.errors import UserError

#: Two independent runs, whose difference says when to stop.
RUNS = ("A", "B")
#: Slices as shares of the players: {32, 64, 96, 128} of 256 as published.
_PUBLISHED_SHARES = (8, 4, 8 / 3, 2)


def default_slices(players: int) -> tuple[int, ...]:
    """An eighth, a quarter, three eighths and half of the players, without repetitions."""
    sizes = {max(1, round(players / share)) for share in _PUBLISHED_SHARES}
    return tuple(sorted(size for size in sizes if size < players))


def check_slices(slices: Sequence[int], players: int) -> tuple[int, ...]:
    """Slices in ascending order.

    Raises:
        UserError: none, one twice, or one that the game does not have.
    """
    if not slices or len(set(slices)) != len(slices):
        raise UserError(f"slices {list(slices)}: give every coalition size once, e.g. --slices 32")
    outside = [size for size in slices if not 1 <= size < players]
    if outside:
        raise UserError(
            f"slice {outside[0]} is outside 1 to {players - 1}; the model has {players} players "
            f"(layers x KV heads), e.g. --slices {','.join(map(str, default_slices(players)))}"
        )
    return tuple(sorted(slices))


@dataclass(frozen=True, order=True)
class Draw:
    """One coalition of one slice of one run; ``index`` counts from 0 within them."""

    index: int
    size: int
    run: str

    def members(self, seed: int, players: int) -> Members:
        """The coalition, bool [players]: ``size`` players without replacement."""
        random = Random(f"cokv:{seed}:{self.run}:{self.size}:{players}:{self.index}")
        members = np.zeros(players, dtype=np.bool_)
        members[random.sample(range(players), self.size)] = True
        return members


def draws_of_block(
    block: int, per_block: int, slices: Sequence[int], part: int = 0, parts: int = 1
) -> list[Draw]:
    """The draws of one block that fall to one of several processes.

    A block holds ``per_block`` draws of every slice of both runs. They are dealt out in turn, so
    that with as many processes as (slice, run) pairs each has one pair.
    """
    units = [(size, run) for run in RUNS for size in slices]
    indices = range(block * per_block, (block + 1) * per_block)
    dealt = [Draw(index, size, run) for index in indices for size, run in units]
    first = block * per_block * len(units)
    return [draw for place, draw in enumerate(dealt, start=first) if place % parts == part]
