"""Official files of GraphWalks (openai/graphwalks): one message a row, its answer as a list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import OFFICIAL, Parts, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.graphwalks.drawn import new_tokens
from catekv.tasks.rows.sources import file_rows

PREFIX = "graphwalks/"
FIELDS = frozenset({"prompt", "problem_type"})
#: where the operation of a published prompt begins
_MARKS = ("\nOperation:", "\nPerform a", "\nFind the parents", "\nFind all parents")


def _nodes(row: Mapping[str, Any]) -> list[str]:
    nodes = row.get("answer_nodes", row.get("answer"))
    if not isinstance(nodes, list | tuple) or any(not isinstance(node, str) for node in nodes):
        raise ValueError("answer_nodes is no list of names")
    return list(nodes)


def row_parts(position: int, row: Mapping[str, Any]) -> Parts:
    """A row as a prompt; the question begins at the operation, else at the last paragraph."""
    prompt, kind = row["prompt"], row["problem_type"]
    if not isinstance(prompt, str) or not isinstance(kind, str):
        raise ValueError("prompt and problem_type must be texts")
    nodes = _nodes(row)
    place = max((prompt.rfind(mark) for mark in _MARKS), default=-1)
    if place < 0:
        place = max(prompt.rstrip().rfind("\n\n"), 0)
    asked = prompt[place:].rpartition(" of node ")[2] if kind == "parents" else ""
    if kind == "parents" and asked.strip().rstrip(".").strip() in nodes:
        # some published rows wrongly keep an edge of the node to itself
        nodes.remove(asked.strip().rstrip(".").strip())
    return Parts(
        context=prompt[:place],
        question=prompt[place:],
        answer_prefix="",
        outputs=tuple(nodes),
        max_new_tokens=new_tokens(max(1, len(nodes))),
        wording=OFFICIAL,
        scoring={"nodes": nodes},
        metadata={"operation": kind, "row": position},
    )


def recognise(row: Mapping[str, Any], path: Path) -> str | None:
    if not row.keys() >= FIELDS or not {"answer_nodes", "answer"} & row.keys():
        return None
    return PREFIX + ("parents" if row["problem_type"] == "parents" else "bfs")


def read(path: Path, name: str | None = None) -> list[Sample]:
    """Samples of an official file; rows of both operations, or of the task that was asked for."""
    rows = file_rows(path)
    samples = []
    for position, parts in enumerate(rows.parsed(row_parts)):
        task = PREFIX + ("parents" if parts.metadata["operation"] == "parents" else "bfs")
        if name is None or task == name:
            samples.append(unfitted(task, "f1", position, parts))
    if not samples:
        raise UserError(f"{path} holds no row of {name}")
    return samples
