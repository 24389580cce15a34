"""MiniLongBench files: finished prompts with predictions of a model and references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from catekv.tasks.longbench.prompt_files import find_context


class MiniRow(NamedTuple):
    """One row; ``boundary`` is the number of characters of the context part, None if unknown."""

    prompt: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]
    boundary: int | None


def is_mini(row: Mapping[str, Any]) -> bool:
    """Whether a row is laid out as in MiniLongBench."""
    return "origin_prompt" in row and "gold" in row


def parse(row: Mapping[str, Any], template: str | None) -> MiniRow:
    """A row; the official format string, where it is known, tells where its context ends.

    Raises:
        KeyError: a field is missing.
        ValueError: a field of another kind.
    """
    prompt, gold, classes = row["origin_prompt"], row["gold"], None
    if not isinstance(prompt, str):
        raise ValueError("field 'origin_prompt' is not a text")
    if isinstance(gold, dict):
        gold, classes = gold["answers"], gold["all_classes"]
    if not isinstance(gold, list) or not gold:
        raise ValueError("field 'gold' holds no list with at least one answer")
    return MiniRow(
        prompt,
        tuple(str(answer) for answer in gold),
        tuple(str(name) for name in classes or ()),
        find_context(template, prompt) if template is not None else None,
    )
