"""GraphWalks in the vocabulary of the embedded model: a search in a graph of paths.

An edge is ``pass A B .``, the start a value. One edge leaves every node, so the nodes of a depth
are one node: the last of the names that the model lists on its way. Ways from other starts stand
between them.
"""

from __future__ import annotations

from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.small.parts import story_plan
from catekv.tasks.small.stories import chains

OPERATION = "bfs"


def plan(request: BuildRequest, index: int, depth: int) -> Plan:
    """A walk of at most ``depth`` edges, with two others beside it."""
    edges = request.random(index, "depth").randint(1, depth)
    asked = chains(story_seed(request, index), edges, others=2)
    return story_plan(asked, {"nodes": [asked.answer.split()[-1]], "walk": True})


def final_answer(prediction: str) -> str:
    """The published form of an answer that names the nodes on the way."""
    names = prediction.partition(".")[0].split()
    return f"Final Answer: [{', '.join(names[-1:])}]"
