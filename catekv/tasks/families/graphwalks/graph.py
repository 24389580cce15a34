"""Random directed graphs, and the two questions about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from random import Random

Edge = tuple[str, str]

#: how many edges leave a node
DEGREES = (1, 4)
#: numbers that names are made of
_NUMBERS = 1_000_000


def node_name(number: int) -> str:
    """The published names: 10 hexadecimal digits of the MD5 of the decimal number."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:10]


class Graph:
    """Edges by the node that they leave, and by the one that they enter."""

    def __init__(self, edges: Iterable[Sequence[str]]) -> None:
        self.leaving: dict[str, list[str]] = {}
        self.entering: dict[str, list[str]] = {}
        for start, end in edges:
            self.leaving.setdefault(start, []).append(end)
            self.entering.setdefault(end, []).append(start)

    def parents(self, node: str) -> set[str]:
        """The other nodes with an edge to this one."""
        return set(self.entering.get(node, ())) - {node}

    def at_depth(self, node: str, depth: int) -> set[str]:
        """Nodes at exactly ``depth`` edges on the shortest way; the start is none of them."""
        seen, frontier = {node}, {node}
        for _ in range(depth):
            frontier = {end for start in frontier for end in self.leaving.get(start, ())} - seen
            seen |= frontier
        return frontier - {node}

    def answer(self, operation: str, node: str, depth: int = 1) -> list[str]:
        """Sorted answer of ``bfs`` (:meth:`at_depth`) or ``parents``."""
        found = self.parents(node) if operation == "parents" else self.at_depth(node, depth)
        return sorted(found)


def names(random: Random) -> Iterator[str]:
    """Distinct names without end."""
    numbers = set[int]()
    while True:
        number = random.randrange(_NUMBERS)
        if number not in numbers:
            numbers.add(number)
            yield node_name(number)


def random_edges(count: int, nodes: Sequence[str], random: Random) -> list[Edge]:
    """``count`` edges between nodes in random order: 1 to 4 leave every node, none leads to itself
    and none is there twice."""
    size, (least, most) = len(nodes), DEGREES
    degrees = [least] * size
    # every node can take so many more
    places = [node for node in range(size) for _ in range(most - least)]
    for node in random.sample(places, max(0, count - size)):
        degrees[node] += 1
    edges = []
    for node, degree in enumerate(degrees):
        ends: set[int] = set()
        while len(ends) < degree:
            end = int(random.random() * size)
            if end != node:
                ends.add(end)
        edges += [(nodes[node], nodes[end]) for end in sorted(ends)]
    random.shuffle(edges)
    return edges[:count]


def nodes_for(edges: int) -> int:
    """How many nodes a graph of so many edges has."""
    least, most = DEGREES
    return max(most + 2, edges * 2 // (least + most))
