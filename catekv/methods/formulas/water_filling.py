"""Entries for every head by marginal gain: each goes where it lowers the summed loss most.

A head's loss is a curve over the share of entries that it keeps. On the lower convex hull of the
curves the greedy choice is the best one: segments are filled in the order of their slopes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.methods.formulas.budgets import largest_remainder


def lower_hull(shares: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Places of the points on the lower convex hull of a curve, the first and the last included."""
    hull: list[int] = []
    for place in range(len(shares)):
        while len(hull) > 1:
            before, last = hull[-2:]
            rise = (losses[last] - losses[before]) * (shares[place] - shares[before])
            if rise < (losses[place] - losses[before]) * (shares[last] - shares[before]):
                break
            hull.pop()
        hull.append(place)
    return hull


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of all hulls, those with the largest gain per share first.

    Attributes:
        head: int64 [segments], flat index of the head. start, stop: float64 [segments], shares.
        gain: float64 [segments], loss per share that a segment removes.
        shape: layers and KV heads.
    """

    head: Tensor
    start: Tensor
    stop: Tensor
    gain: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, shares: Sequence[float], losses: Sequence[Sequence[Sequence[float]]]) -> Segments:
        """Of curves [layers][kv_heads][shares]; shares ascend from 0 to 1."""
        rows: list[tuple[float, float, float, float]] = []
        curves = [curve for layer in losses for curve in layer]
        for head, curve in enumerate(curves):
            hull = lower_hull(shares, curve)
            for a, b in itertools.pairwise(hull):
                gain = (curve[a] - curve[b]) / (shares[b] - shares[a])
                rows.append((head, shares[a], shares[b], max(0.0, gain)))
        table = torch.tensor(rows, dtype=torch.float64)
        head, start, stop, gain = table[table[:, 3].sort(descending=True, stable=True).indices].T
        return cls(head.long(), start, stop, gain, (len(losses), len(losses[0])))

    def fill(self, total: int, room: int, least: int = 0) -> Tensor:
        """Split ``total`` entries, exactly: int64 [layers, kv_heads].

        Segments of equal gain share what is left in proportion to their lengths.

        Args:
            total: at most ``room`` for each head.
            room: the most one head can keep.
            least: what every head keeps, whatever its gain.
        """
        # a knot is one whole number for all heads, so that neighbours meet
        widths = self._knots(self.stop, room, least) - self._knots(self.start, room, least)
        counts = torch.full((self.shape[0] * self.shape[1],), min(least, room))
        rest = total - int(counts.sum())
        reached = widths.cumsum(0)
        border = int((reached < rest).sum())
        if border < len(widths):
            tied = self.gain == self.gain[border]
            taken = widths * (self.gain > self.gain[border])
            taken[tied] = largest_remainder(widths[tied], rest - int(taken.sum()))
        else:
            taken = widths
        return counts.index_add(0, self.head, taken).view(self.shape)

    @staticmethod
    def _knots(shares: Tensor, room: int, least: int) -> Tensor:
        return (shares * room).round().long().clamp(min=min(least, room))
