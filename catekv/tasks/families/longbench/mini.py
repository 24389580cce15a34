"""MiniLongBench files: finished prompts with predictions of a model and references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from catekv.tasks.families.longbench.prompt_files import find_context
from catekv.tasks.families.longbench.rows import check_references, listed
from catekv.tasks.families.longbench.table import TaskFacts
from catekv.tasks.rows.rows import text_field


class MiniRow(NamedTuple):
    """One row; ``boundary`` is the number of characters of the context part, None if unknown."""

    prompt: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]
    boundary: int | None


def is_mini(row: Mapping[str, Any]) -> bool:
    """Whether a row is laid out as in MiniLongBench."""
    return "origin_prompt" in row and "gold" in row


def parse(row: Mapping[str, Any], facts: TaskFacts, template: str | None) -> MiniRow:
    """A row; the official format string, where it is known, tells where its context ends.

    Raises:
        KeyError: a field is missing.
        ValueError: a field of another kind.
    """
    prompt, gold = text_field(row, "origin_prompt"), row["gold"]
    held = {"gold": gold} if not isinstance(gold, dict) else {**gold, "gold": gold["answers"]}
    answers = listed(held, "gold", "at least one answer")
    check_references(facts, answers)
    classes: tuple[str, ...] = ()
    if facts.metric == "classification":
        classes = listed(held, "all_classes", "the names of the classes")
    boundary = find_context(template, prompt) if template is not None else None
    return MiniRow(prompt, answers, classes, boundary)
