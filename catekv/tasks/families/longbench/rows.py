"""Rows of LongBench v1 and -E."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catekv.errors import UserError
from catekv.tasks.families.longbench.table import TaskFacts
from catekv.tasks.metrics import retrieval_score
from catekv.tasks.rows.rows import shown, text_field


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
    context, asked = text_field(row, "context"), text_field(row, "input")
    answers = listed(row, "answers", "at least one answer")
    check_references(facts, answers)
    classes: tuple[str, ...] = ()
    if facts.metric == "classification":
        classes = listed(row, "all_classes", "the names of the classes")
    length = row["length"] if needs_length else row.get("length")
    missing = length is None and not needs_length
    if not missing and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
        raise ValueError(f"field 'length' is {shown(length)}, expected a number of words")
    return LongRow(
        identifier=str(row.get("_id", position)),
        context=context,
        input=asked,
        answers=answers,
        length=length,
        all_classes=classes,
        fields=row,
    )


def listed(row: Mapping[str, Any], name: str, what: str) -> tuple[str, ...]:
    """A field that holds a list of texts or numbers.

    Raises:
        KeyError: it is missing.
        ValueError: it is no such list, or an empty one.
    """
    value = row[name]
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {name!r} is not a list with {what}")
    for item in value:
        if not isinstance(item, str | int):
            raise ValueError(f"field {name!r} holds {shown(item)}, expected a text")
    return tuple(map(str, value))


def check_references(facts: TaskFacts, answers: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for answers that the rule of the task cannot read."""
    if not facts.metric.startswith("retrieval"):
        return
    for answer in answers:
        try:
            retrieval_score("", answer, facts.language)
        except UserError as error:
            raise ValueError(str(error)) from None
