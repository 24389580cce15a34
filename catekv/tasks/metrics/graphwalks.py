"""GraphWalks: the list of nodes in the last line of an answer against the true set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_LIST = re.compile(r"Final Answer:\s*\[(.*)\]")


class Walk(NamedTuple):
    """What an answer lists, and how it agrees with the true nodes.

    Attributes:
        parse_failed: the last line that is not blank has no list behind its marker.
        f1: 2 |P & T| / (|P| + |T|); 1 where both sets are empty.
    """

    parse_failed: bool
    nodes: tuple[str, ...]
    precision: float
    recall: float
    f1: float
    exact: bool


def rate(response: str, answer_nodes: Iterable[str]) -> Walk:
    """Rate one answer.

    Args:
        response: its last line that is not blank must hold ``Final Answer: [a, b]``; quotes around
            names are dropped. The list ends at the line's last bracket.
        answer_nodes: the true nodes.
    """
    wanted = set(answer_nodes)
    lines = [line for line in response.splitlines() if line.strip()]
    listed = _LIST.search(lines[-1]) if lines else None
    if listed is None:
        return Walk(True, (), 0.0, 0.0, 0.0, False)
    items = (item.strip().strip("'\"`").strip() for item in listed.group(1).split(","))
    nodes = {item for item in items if item}
    hits = len(nodes & wanted)
    total = len(nodes) + len(wanted)
    return Walk(
        False,
        tuple(sorted(nodes)),
        hits / len(nodes) if nodes else 0.0,
        hits / len(wanted) if wanted else 0.0,
        2 * hits / total if total else 1.0,
        nodes == wanted,
    )
