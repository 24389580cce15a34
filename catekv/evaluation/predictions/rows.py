"""Prediction files that other harnesses wrote, read row by row.

Four layouts are read, told apart by their fields:

* MiniLongBench: one JSON object ``{"0": {prediction, gold, ...}, ...}``; ``gold`` is a list of
  references, or an object with ``answers`` and ``all_classes``;
* LongBench v1 and -E: JSONL with ``pred``, ``answers``, ``all_classes``, ``length``;
* LongBench v2: JSONL with ``response``, ``answer``, ``difficulty``, ``length``;
* InfiniteBench: JSONL with ``prediction`` and ``ground_truth``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.metrics import infinitebench, longbench
from catekv.tasks.rows.rows import naming, read_rows, shown


@dataclass(frozen=True)
class Prediction:
    """One row. ``references`` is what the metric of its layout takes; ``length`` is words (or
    "short", "medium", "long" in LongBench v2); ``place`` says where in the file it stands."""

    index: int | str
    text: str
    references: Any
    all_classes: tuple[str, ...] | None = None
    length: int | str | None = None
    difficulty: str = ""
    place: str = ""


@dataclass(frozen=True)
class PredictionFile:
    """A file as it was read: its layout, the task and model that its name says ("" if none)."""

    path: Path
    layout: str
    task: str
    model: str
    rows: tuple[Prediction, ...]


def read_predictions(path: str | os.PathLike[str]) -> PredictionFile:
    """Read a prediction file of any of the four layouts.

    Raises:
        UserError: unreadable file, torn line, missing field, repeated index, no row, or a layout
            that is none of the four; file and line are named.
    """
    file = Path(path)
    numbered = read_rows(file)
    layout, parse = _layout(file, numbered[0][1])
    rows: list[Prediction] = []
    seen: set[int | str] = set()
    for place, (where, row) in enumerate(numbered):
        with naming(file, where):
            prediction = replace(parse(place, row), place=where)
            if prediction.index in seen:
                raise ValueError(f"index {prediction.index!r} comes twice")
        seen.add(prediction.index)
        rows.append(prediction)
    task, model = _names(file, layout)
    return PredictionFile(file, layout, task, model, tuple(rows))


def _layout(
    file: Path, row: dict[str, Any]
) -> tuple[str, Callable[[int, dict[str, Any]], Prediction]]:
    if "gold" in row:
        return "longbench", _mini
    if "ground_truth" in row:
        return "infinitebench", _infinite
    if "answers" in row:
        return "longbench", _long
    if "response" in row and "answer" in row:
        return "longbench_v2", _long_v2
    raise UserError(
        f"{file}: layout not known; expected one of the field pairs prediction and gold "
        "(MiniLongBench), pred and answers (LongBench), response and answer (LongBench v2), "
        "prediction and ground_truth (InfiniteBench)"
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the prediction is {shown(value)}, expected a text")
    return value


def _references(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("the references are not a list with at least one answer")
    return [str(text) for text in value]


def _classes(value: Any) -> tuple[str, ...] | None:
    return tuple(str(name) for name in value) if isinstance(value, list) else None


def _mini(place: int, row: dict[str, Any]) -> Prediction:
    gold = row["gold"]
    classes = None
    if isinstance(gold, dict):
        gold, classes = gold["answers"], _classes(gold.get("all_classes"))
    return Prediction(place, _text(row["prediction"]), _references(gold), classes)


def _long(place: int, row: dict[str, Any]) -> Prediction:
    length = row.get("length")
    return Prediction(
        place,
        _text(row["pred"]),
        _references(row["answers"]),
        _classes(row.get("all_classes")),
        length if isinstance(length, int) else None,
    )


def _long_v2(place: int, row: dict[str, Any]) -> Prediction:
    return Prediction(
        str(row.get("_id", place)),
        _text(row["response"]),
        str(row["answer"]),
        length=str(row.get("length", "")),
        difficulty=str(row.get("difficulty", "")),
    )


def _infinite(place: int, row: dict[str, Any]) -> Prediction:
    identity = row.get("id", place)
    if not isinstance(identity, int | str):
        raise ValueError(f"the id is {shown(identity)}, expected a number or a text")
    return Prediction(identity, _text(row["prediction"]), row["ground_truth"])


def _names(file: Path, layout: str) -> tuple[str, str]:
    """The longest task name that ends the file's name, and what stands before it."""
    tasks = {"longbench": tuple(longbench.METRICS), "infinitebench": infinitebench.TASKS}
    stem = file.stem.removesuffix("_e") if layout == "longbench" else file.stem
    for task in sorted(tasks.get(layout, ()), key=len, reverse=True):
        if stem.endswith(task):
            return task, stem.removesuffix(task).rstrip("_-.")
    return "", ""
