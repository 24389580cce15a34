"""Rows of LongBench v1 and -E."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catekv.tasks.longbench.table import TaskFacts


@dataclass(frozen=True)
class LongRow:
    """One row.

    Attributes:
        length: words (English, code) or characters (Chinese); None where the file does not say.
        all_classes: names of the classes; () for tasks without.
        fields: the row as it was read, for prompt files.
    """

    identifier: str
    context: str
    input: str
    answers: tuple[str, ...]
    length: int | None
    all_classes: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse(
    row: Mapping[str, Any], facts: TaskFacts, position: int, needs_length: bool = False
) -> LongRow:
    """A row as LongBench publishes it.

    Raises:
        KeyError: ``context``, ``input`` or ``answers`` is missing, or ``all_classes`` of a task
            that needs it, or ``length`` where it is needed.
        ValueError: a field of another kind, or of another task.
    """
    dataset = str(row.get("dataset") or facts.name).removesuffix("_e")
    if dataset != facts.name:
        raise ValueError(f"the row belongs to {dataset}, not to {facts.name}")
    for name in ("context", "input"):
        if not isinstance(row[name], str):
            raise ValueError(f"field {name!r} is {row[name]!r}, expected a text")
    answers = row["answers"]
    if not isinstance(answers, list) or not answers:
        raise ValueError("field 'answers' is not a list with at least one answer")
    classes: list[Any] = []
    if facts.metric == "classification":
        classes = row["all_classes"]
        if not isinstance(classes, list) or not classes:
            raise ValueError("field 'all_classes' is not a list with the names of the classes")
    length = row["length"] if needs_length else row.get("length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool)):
        raise ValueError(f"field 'length' is {length!r}, expected a number of words")
    return LongRow(
        identifier=str(row.get("_id", position)),
        context=row["context"],
        input=row["input"],
        answers=tuple(str(answer) for answer in answers),
        length=length,
        all_classes=tuple(str(name) for name in classes),
        fields=row,
    )
