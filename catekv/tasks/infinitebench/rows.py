"""Official InfiniteBench rows: ``id``, ``context``, ``input``, ``answer`` and ``options``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.infinitebench.prompts import CHOICES, LETTERS, NEW_TOKENS, PREFIX, Item, parts
from catekv.tasks.parts import Parts, unfitted
from catekv.tasks.rows import parse_rows
from catekv.tasks.sample import Sample

#: longer names first: "longbook_qa_eng" must not be taken for a part of another
_BY_LENGTH = sorted(NEW_TOKENS, key=len, reverse=True)


def row_parts(task: str, position: int, row: dict[str, Any]) -> Parts:
    """The prompt of an official row.

    Raises:
        KeyError, ValueError: a missing field, or an answer that the task's rule cannot use.
    """
    text, asked = row["context"], row.get("input") or ""
    if not isinstance(text, str) or not isinstance(asked, str):
        raise ValueError("context and input must be texts")
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if not answers:
        raise ValueError("there is no answer in this row")
    options = row.get("options") or []
    label: Any = row["answer"]
    outputs = tuple(map(str, answers))
    if task in CHOICES:
        right = str(answers[0])
        if len(options) != len(LETTERS) or right not in options:
            raise ValueError("the answer must be one of four options")
        letter = LETTERS[options.index(right)]
        label, outputs = [right, letter], (f"{letter}. {right}",)
    elif task == "math_calc":
        outputs = (", ".join(outputs),)
    item = Item(text, asked, label, outputs, options if task in CHOICES else ())
    try:
        return parts(task, item, metadata={"id": row.get("id", position)})
    except UserError as error:
        raise ValueError(str(error)) from None


def task_of_path(path: Path) -> str | None:
    """The task that the name of a file is, or ends or starts with."""
    for name in _BY_LENGTH:
        if path.stem == name or path.stem.endswith(f"_{name}") or path.stem.startswith(f"{name}_"):
            return name
    return None


def read(path: Path | str, task: str | None = None) -> list[Sample]:
    """Samples of an official file, in file order; see :func:`catekv.tasks.read`."""
    file = Path(path)
    name = (task or task_of_path(file) or "").removeprefix(PREFIX)
    if name not in NEW_TOKENS:
        raise UserError(f"{file}: the name holds no InfiniteBench task; pass task=")
    metric = metric_name(name)

    def parse(position: int, row: dict[str, Any]) -> Sample:
        return unfitted(PREFIX + name, metric, position, row_parts(name, position, row))

    return parse_rows(file, parse)


def recognise(row: dict[str, Any], path: Path) -> str | None:
    """Official rows have a context, an answer and an id; the file is named after its task."""
    name = task_of_path(path)
    return PREFIX + name if name and {"context", "answer", "id"} <= row.keys() else None


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
