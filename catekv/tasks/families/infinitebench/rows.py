"""Official InfiniteBench rows: ``id``, ``context``, ``input``, ``answer`` and ``options``."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.infinitebench.prompts import (
    CHOICES,
    LETTERS,
    NEW_TOKENS,
    PREFIX,
    Item,
    parts,
)
from catekv.tasks.rows.named_files import NamedFiles
from catekv.tasks.rows.rows import identity_field, parse_rows, references_field, shown, text_field

FILES = NamedFiles(
    "InfiniteBench", PREFIX, tuple(NEW_TOKENS), frozenset({"context", "answer", "id"})
)
#: tasks whose answers are numbers, written without quotes
_NUMBERS = {"math_find": "a number", "math_calc": "a whole number", "code_run": "a whole number"}


def row_parts(task: str, position: int, row: dict[str, Any]) -> Parts:
    """The prompt of an official row.

    Raises:
        KeyError, ValueError: a missing field, one of another kind, or an answer that the task's
            rule cannot use.
    """
    text, asked = text_field(row, "context"), row.get("input")
    if asked is not None:
        asked = text_field(row, "input")
    outputs = _answers(task, row)
    label: Any = row["answer"]
    options: list[str] = []
    if task in CHOICES:
        options, right = _options(row), outputs[0]
        if right not in options:
            raise ValueError(f"the answer {shown(right)} is none of the options")
        letter = LETTERS[options.index(right)]
        label, outputs = [right, letter], (f"{letter}. {right}",)
    elif task == "math_calc":
        outputs = (", ".join(outputs),)
    item = Item(text, asked or "", label, outputs, options)
    try:
        return parts(task, item, metadata={"id": identity_field(row, "id", position)})
    except UserError as error:
        raise ValueError(str(error)) from None


def _answers(task: str, row: dict[str, Any]) -> tuple[str, ...]:
    """The answers of a row as texts; ``ValueError`` for what no prediction could be held against,
    be it that the answer is blank or of another kind than the task's."""
    if task not in _NUMBERS:
        return references_field(row, "answer")
    value = row["answer"]
    if task == "math_calc" and not isinstance(value, list):
        raise ValueError(f"field 'answer' is {shown(value)}, which is not a list of numbers")
    answers = value if isinstance(value, list) else [value]
    if not answers:
        raise ValueError("field 'answer' is [], expected at least one answer")
    kinds = int | float if task == "math_find" else int
    for answer in answers:
        if not isinstance(answer, kinds) or isinstance(answer, bool) or not _is_finite(answer):
            raise ValueError(
                f"field 'answer' holds {shown(answer)}, which is not {_NUMBERS[task]}; write it "
                "without quotes"
            )
    return tuple(map(_digits, answers))


def _is_finite(number: int | float) -> bool:
    return isinstance(number, int) or isfinite(number)


def _digits(number: int | float) -> str:
    try:
        return str(number)
    except ValueError:
        raise ValueError("field 'answer' holds a number of thousands of digits") from None


def _options(row: dict[str, Any]) -> list[str]:
    options = row.get("options")
    if (
        not isinstance(options, list)
        or len(options) != len(LETTERS)
        or not all(isinstance(option, str) and option.strip() for option in options)
    ):
        raise ValueError(f"field 'options' is {shown(options)}, expected four texts")
    return options


def read(path: Path | str, task: str | None = None) -> list[Sample]:
    """Samples of an official file, in file order; see :func:`catekv.tasks.read`."""
    file = Path(path)
    name = FILES.task(file, task)
    metric = metric_name(name)

    def parse(position: int, row: dict[str, Any]) -> Sample:
        return unfitted(PREFIX + name, metric, position, row_parts(name, position, row))

    return parse_rows(file, parse)


def metric_name(task: str) -> str:
    """Short name of a task's official score."""
    named = {
        "longbook_sum_eng": "rougeLsum",
        "longbook_qa_eng": "qa_f1",
        "longbook_qa_chn": "character_f1",
        "longbook_choice_eng": "choice",
        "code_debug": "choice",
        "math_calc": "prefix",
    }
    return named.get(task, "exact")
