"""Official files of MRCR (openai/mrcr): conversations as JSON texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import OFFICIAL, Parts, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.mrcr.drawn import new_tokens
from catekv.tasks.rows.sources import file_rows

PREFIX = "mrcr/"
NEEDLES = (2, 4, 8)
FIELDS = frozenset({"prompt", "answer", "random_string_to_prepend", "n_needles"})
_ROLES = {"user": "User", "assistant": "Assistant", "system": "System"}


def task_name(needles: int) -> str:
    return f"{PREFIX}{needles}_needles"


def _messages(text: Any) -> Sequence[Mapping[str, str]]:
    messages = json.loads(text) if isinstance(text, str) else text
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("prompt is no list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError("a message of prompt has no text as its content")
    return messages


def row_parts(position: int, row: Mapping[str, Any]) -> Parts:
    """A row as a prompt: everything before the last message is its context."""
    messages = _messages(row["prompt"])
    answer, prefix, needles = row["answer"], row["random_string_to_prepend"], row["n_needles"]
    if not isinstance(answer, str) or not isinstance(prefix, str):
        raise ValueError("answer and random_string_to_prepend must be texts")
    if not answer.removeprefix(prefix).strip():
        raise ValueError("the row has no answer to score against")
    if needles not in NEEDLES:
        raise ValueError(f"n_needles {needles!r} is none of {', '.join(map(str, NEEDLES))}")
    lines = [
        f"{_ROLES.get(str(message.get('role')), 'User')}: {message['content']}\n"
        for message in messages[:-1]
    ]
    return Parts(
        context="\n".join(lines) + "\n",
        question=messages[-1]["content"] + "\n",
        answer_prefix="",
        outputs=(answer,),
        max_new_tokens=new_tokens(answer),
        wording=OFFICIAL,
        scoring={"prefix": prefix, **_instances(messages, row)},
        metadata={"needles": needles, "row": position, "messages": len(messages)},
    )


def _instances(messages: Sequence[Mapping[str, str]], row: Mapping[str, Any]) -> dict[str, Any]:
    """The texts that answered the request which is meant, and which of them; {} if the row does not
    say where it stands."""
    place = row.get("desired_msg_index")
    if not isinstance(place, int) or not 0 <= place < len(messages) - 1:
        return {}
    asked = messages[place]["content"]
    places = [
        number
        for number, message in enumerate(messages[:-1])
        if message["content"] == asked and message.get("role") == "user"
    ]
    if place not in places:
        return {}
    return {
        "texts": [messages[number + 1]["content"] for number in places],
        "instance": places.index(place),
    }


def recognise(row: Mapping[str, Any], path: Path) -> str | None:
    return task_name(row["n_needles"]) if row.keys() >= FIELDS else None


def read(path: Path, name: str | None = None) -> list[Sample]:
    """Samples of an official file, of all numbers of needles or of one task."""
    rows = file_rows(path)
    samples = []
    for position, parts in enumerate(rows.parsed(row_parts)):
        task = task_name(parts.metadata["needles"])
        if name is None or task == name:
            samples.append(unfitted(task, "ratio", position, parts))
    if not samples:
        raise UserError(f"{path} holds no row of {name}")
    return samples
