"""Sliced Shapley values from complementary contributions: formulas without models or files.

Players are numbered ``layer * kv_heads + head``. The complementary contribution of a coalition S is
``u(S) = U(S) - U(N \\ S)``; the slice value of player i at size j is the mean of u over all
coalitions of j players with i among them, and the score of a player is the mean over a few sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from catekv.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Members = NDArray[np.bool_]

ACCUMULATORS = ("both", "left")
#: Players of a game that :func:`exact_slices` enumerates at most.
MOST_EXACT_PLAYERS = 14


@dataclass(frozen=True)
class Sums:
    """What one slice has gathered.

    Attributes:
        size: players in a drawn coalition, j.
        left: sum of u over the coalitions with each player; right: sum of -u over those without
            it. float64 [players].
        left_count, right_count: their numbers, int64 [players].
        draws: coalitions drawn.
    """

    size: int
    left: Floats
    right: Floats
    left_count: Integers
    right_count: Integers
    draws: int

    @classmethod
    def empty(cls, players: int, size: int) -> Sums:
        """Nothing gathered yet.

        Raises:
            UserError: a size that leaves no player, or none outside.
        """
        if not 1 <= size < players:
            raise UserError(
                f"slice {size} is outside 1 to {players - 1}: the game has {players} players "
                "(layers x KV heads), and a coalition and its complement need at least one each"
            )
        none, zero = np.zeros(players), np.zeros(players, dtype=np.int64)
        return cls(size, none, none.copy(), zero, zero.copy(), 0)

    @property
    def players(self) -> int:
        return len(self.left)

    def plus(self, members: Members, contribution: float) -> Sums:
        """With one more coalition: bool [players] and its u."""
        return Sums(
            self.size,
            self.left + np.where(members, contribution, 0.0),
            self.right - np.where(members, 0.0, contribution),
            self.left_count + members,
            self.right_count + ~members,
            self.draws + 1,
        )

    def merged(self, other: Sums) -> Sums:
        """Both together.

        Raises:
            UserError: sums of another slice or game.
        """
        if (self.size, self.players) != (other.size, other.players):
            raise UserError(
                f"sums of slice {self.size} with {self.players} players and of slice {other.size} "
                f"with {other.players} cannot be added; merge files of one slice and model"
            )
        return Sums(
            self.size,
            self.left + other.left,
            self.right + other.right,
            self.left_count + other.left_count,
            self.right_count + other.right_count,
            self.draws + other.draws,
        )

    @property
    def mean_contribution(self) -> float:
        """D_j, the mean of u over the drawn coalitions: every draw counts ``size`` times."""
        return float(self.left.sum() / (self.size * self.draws))

    def unvisited(self, use: str = "both") -> list[int]:
        """Players without an estimate: never in a drawn coalition (``left``), or never in or never
        outside of one (``both``; of half the players' size, never seen at all)."""
        if use == "left":
            missing = self.left_count == 0
        elif 2 * self.size == self.players:
            missing = self.left_count + self.right_count == 0
        else:
            missing = (self.left_count == 0) | (self.right_count == 0)
        return [int(player) for player in np.flatnonzero(missing)]


def slice_estimate(sums: Sums, use: str = "both") -> Floats:
    """Slice value of every player: float64 [players], NaN where nothing is known.

    Args:
        sums: of one slice.
        use: ``left``, the mean over the coalitions with the player, as released; ``both``: a
            coalition of size j is one of size n - j for the players outside it, and slices j and
            n - j are affine images of each other,
            ``j SV(i, j) - (n - j) SV(i, n - j) = n D_j``. The right means are brought into slice j
            by that and weighted ``j / n`` against the left ones. At ``j = n / 2`` both estimate the
            same number (D is 0) and are pooled.
    """
    if use not in ACCUMULATORS:
        raise UserError(f"unknown accumulators {use!r}; use {' or '.join(ACCUMULATORS)}")
    with np.errstate(invalid="ignore", divide="ignore"):
        left = sums.left / sums.left_count
        if use == "left":
            return left
        if 2 * sums.size == sums.players:
            return (sums.left + sums.right) / (sums.left_count + sums.right_count)
        right = sums.right / sums.right_count
        inside, outside = sums.size, sums.players - sums.size
        moved = (sums.players * sums.mean_contribution + outside * right) / inside
        return (outside * left + inside * moved) / sums.players


def scores(slices: Sequence[Sums], use: str = "both") -> Floats:
    """Sliced Shapley values, the mean of the slices: float64 [players], NaN where unknown."""
    return np.mean([slice_estimate(one, use) for one in slices], axis=0)


def require_visited(slices: Sequence[Sums], kv_heads: int, use: str = "both") -> None:
    """Raise ``UserError`` naming the players that a slice knows nothing of."""
    for one in slices:
        missing = one.unvisited(use)
        if missing:
            named = ", ".join(f"layer {p // kv_heads} head {p % kv_heads}" for p in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise UserError(
                f"slice {one.size} has no estimate for {named}{more} after {one.draws} draws; draw "
                "more coalitions (their scores would be NaN)"
            )


@dataclass(frozen=True)
class Agreement:
    """Two independent runs compared: the mean absolute difference, whether it is below the
    tolerance, and the mean of both."""

    error: float
    tolerance: float
    final: Floats

    @property
    def reached(self) -> bool:
        return self.error < self.tolerance


def compare(first: Floats, second: Floats, tolerance: float | None = None) -> Agreement:
    """The stop rule: the error of two runs against ``1 / players``, or another tolerance.

    An error of NaN (a player without an estimate) reaches nothing.
    """
    if first.shape != second.shape:
        raise UserError(
            f"runs of {first.size} and {second.size} players cannot be compared; use two runs of "
            "one model"
        )
    limit = 1 / first.size if tolerance is None else tolerance
    return Agreement(float(np.abs(first - second).mean()), limit, (first + second) / 2)


def exact_slices(utility: Callable[[frozenset[int]], float], players: int) -> Floats:
    """Slice values of all sizes 1 to n by enumeration: float64 [players, sizes].

    Their mean over the sizes is the Shapley value. The definition that estimates are held against.

    Raises:
        UserError: more players than can be enumerated.
    """
    if not 1 <= players <= MOST_EXACT_PLAYERS:
        raise UserError(
            f"{players} players have 2^{players} coalitions; at most {MOST_EXACT_PLAYERS} players "
            "are enumerated, estimate larger games"
        )
    everyone = frozenset(range(players))
    values = np.zeros((players, players))
    for size in range(1, players + 1):
        counts = np.zeros(players)
        for chosen in combinations(range(players), size):
            inside = frozenset(chosen)
            contribution = utility(inside) - utility(everyone - inside)
            values[list(chosen), size - 1] += contribution
            counts[list(chosen)] += 1
        values[:, size - 1] /= counts
    return values
