"""Which points nothing beats: cheaper and at least as good, or as cheap and better."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points (cost, score) that no other dominates, by rising cost.

    A point is dominated where another costs no more and scores no less, and one of the two is
    strictly better. Of equal points all stay.
    """
    front: list[int] = []
    best = float("-inf")
    for position in sorted(range(len(points)), key=lambda p: (points[p][0], -points[p][1])):
        cost, score = points[position]
        same = front and points[front[-1]] == (cost, score)
        if score > best or same:
            front.append(position)
            best = score
    return front
