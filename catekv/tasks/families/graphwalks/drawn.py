"""GraphWalks prompts at any length; the unit is one edge."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.graphwalks import small
from catekv.tasks.families.graphwalks.graph import Graph, names, nodes_for, random_edges
from catekv.tasks.families.graphwalks.options import WalkOptions
from catekv.tasks.small.parts import is_small

_RULES = (
    "Below is a directed graph as a list of edges, one edge per line in the form a -> b. You will "
    "be given an operation on this graph.\n"
    "- BFS from node X with depth d: the nodes whose shortest path from X has exactly d edges. X "
    "itself is not part of the answer.\n"
    "- Parents of node X: the nodes other than X that have an edge to X.\n"
    "The last line of your answer must be Final Answer: followed by the nodes in brackets, "
    "separated by commas; an empty list is [].\n\n"
    "Examples with the edges aa -> bb, aa -> cc, bb -> dd, dd -> aa:\n"
    "BFS from node aa with depth 1\nFinal Answer: [bb, cc]\n"
    "BFS from node aa with depth 2\nFinal Answer: [dd]\n"
    "Parents of node aa\nFinal Answer: [dd]\n\n"
    "The graph:\n"
)
#: share of the questions that nothing answers
EMPTY = 0.05
#: starts that are tried for an answer of the size that was drawn
_TRIES = 200
#: edges of the smallest graph
_MINIMUM = 12


def new_tokens(largest: int) -> int:
    """Allowance for an answer of so many nodes."""
    return 12 * largest + 32


def plan(request: BuildRequest, index: int) -> Plan:
    operation = request.task.name.partition("/")[2]
    if is_small(request.wording):
        assert isinstance(request.options, WalkOptions)
        return small.plan(request, index, request.options.depth)
    return Plan(_drafts(request, index, operation), _MINIMUM)


def _drafts(request: BuildRequest, index: int, operation: str) -> Callable[[int, int], Parts]:
    options = request.options
    assert isinstance(options, WalkOptions)

    # the same names at every size, so that their tokens are counted once
    drawn = names(request.random(index, "names"))
    known = Growing(lambda _: next(drawn), request.random(index, "order"))

    @lru_cache(maxsize=2)  # the search looks at one text twice: estimated, then counted
    def draft(units: int, extra: int) -> Parts:
        random = generator(*story_seed(request, index), "graph", units)
        nodes = known.first(nodes_for(units))
        edges = random_edges(units, nodes, random)
        empty = random.random() < EMPTY
        random.shuffle(nodes)
        depths = [random.randint(1, options.depth) for _ in nodes]
        node, depth, solution = _asked(
            operation, nodes, depths, Graph(edges), empty, options.largest
        )
        text = f"BFS from node {node} with depth {depth}"
        if operation == "parents":
            text = f"Parents of node {node}"
        return Parts(
            context=_RULES + "\n".join(f"{start} -> {end}" for start, end in edges) + "\n",
            question=f"\nOperation: {text}\n",
            answer_prefix="",
            outputs=tuple(solution),
            max_new_tokens=new_tokens(options.largest),
            wording="english-1",
            scoring={"nodes": solution},
            metadata={"operation": operation, "depth": depth, "edges": units},
        )

    return draft


def _asked(
    operation: str,
    nodes: list[str],
    depths: list[int],
    graph: Graph,
    empty: bool,
    largest: int,
) -> tuple[str, int, list[str]]:
    """A node, a depth and their answer, with 1 to ``largest`` nodes or none; else the smallest."""
    best: tuple[str, int, list[str]] | None = None
    for node, depth in zip(nodes[:_TRIES], depths, strict=False):
        solution = graph.answer(operation, node, depth)
        fits = not solution if empty else 0 < len(solution) <= largest
        if fits:
            return node, depth, solution
        if best is None or 0 < len(solution) < len(best[2]) or not best[2]:
            best = node, depth, solution
    assert best is not None
    return best
