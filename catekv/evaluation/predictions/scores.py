"""Scores of prediction files that other harnesses wrote: no model is needed.

What the files look like: :mod:`catekv.evaluation.predictions.rows`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from catekv.errors import UserError
from catekv.evaluation.predictions.rows import Prediction, PredictionFile, read_predictions
from catekv.tasks.metrics import chinese, infinitebench, longbench, longbench_tables, longbench_v2
from catekv.tasks.metrics.longbench_tables import Mean
from catekv.tasks.rows.rows import naming

__all__ = ["Prediction", "PredictionFile", "Rescored", "read_predictions", "rescore"]

Rate = TypeVar("Rate")


@dataclass(frozen=True)
class Rescored:
    """Scores of a prediction file.

    Args:
        scores: one per row, in [0, 1] and in file order.
        reasons: row index to why its score is 0 where the published function raises.
        groups: percent and number of rows per -E bucket or LongBench v2 group, {} for other
            files; None for an empty group.
        backend: the library that the numbers depend on besides the rule, e.g. "difflib" or
            "jieba 0.42.1"; None where there is none.
    """

    task: str
    layout: str
    scores: tuple[float, ...]
    reasons: dict[int | str, str]
    groups: dict[str, Mean]
    backend: str | None

    @property
    def points(self) -> float:
        """Sum of the scores."""
        return sum(self.scores)

    @property
    def mean(self) -> float:
        """Mean score in [0, 1]."""
        return self.points / len(self.scores)

    @property
    def percent(self) -> float:
        """Mean score times 100, 2 decimals."""
        return round(100 * self.mean, 2)


def rescore(
    path: str | os.PathLike[str],
    task: str | None = None,
    *,
    model: str | None = None,
    strict: bool = False,
    backend: str = "difflib",
) -> Rescored:
    """Score a prediction file by the published rule of its task.

    Args:
        task: LongBench or InfiniteBench task; default: the one in the file's name.
        model: InfiniteBench's model name ("gpt4" has a rule of its own); default: from the name.
        strict: see :func:`longbench.classification` and :func:`longbench_v2.extract_answer`.
        backend: of code scores, see :func:`catekv.tasks.metrics.edit.text_ratio`.

    Raises:
        UserError: see :func:`read_predictions`; an unknown task, or none in the file's name; a
            reference that the rule cannot read (file and line are named).
    """
    found = read_predictions(path)
    name = task or found.task
    if found.layout == "longbench_v2":
        return _longbench_v2(found, strict)
    if not name:
        raise UserError(f"the name of {found.path} holds no task; pass task=")
    if found.layout == "infinitebench":
        who = found.model if model is None else model
        rated = _each(found, lambda row: infinitebench.rate(name, row.text, row.references, who))
        reasons = {
            row.index: rating.reason
            for row, rating in zip(found.rows, rated, strict=True)
            if rating.reason
        }
        return Rescored(name, found.layout, tuple(r.value for r in rated), reasons, {}, None)
    name = longbench.task_name(name)
    scores = _each(
        found,
        lambda row: longbench.score(
            name, row.text, row.references, row.all_classes, strict=strict, backend=backend
        ),
    )
    groups: dict[str, Mean] = {}
    lengths = [row.length for row in found.rows if isinstance(row.length, int)]
    if len(lengths) == len(scores):
        groups = longbench_tables.bucket_scores(scores, lengths)
    depends = None
    if longbench.METRICS[name] == "edit_similarity":
        depends = backend
    elif longbench.METRICS[name] in ("qa_f1_zh", "rouge_l_zh"):
        depends = chinese.segmenter_name()
    return Rescored(name, found.layout, tuple(scores), {}, groups, depends)


def _each(found: PredictionFile, rate: Callable[[Prediction], Rate]) -> list[Rate]:
    """Every row rated; what a rule cannot use is named with file and line."""
    rated = []
    for row in found.rows:
        with naming(found.path, row.place):
            try:
                rated.append(rate(row))
            except UserError as error:
                raise ValueError(str(error)) from None
    return rated


def _longbench_v2(found: PredictionFile, strict: bool) -> Rescored:
    scores = [longbench_v2.score(row.text, row.references, strict=strict) for row in found.rows]
    table = longbench_v2.report(
        longbench_v2.Row(score, row.difficulty, str(row.length))
        for score, row in zip(scores, found.rows, strict=True)
    )
    groups = {
        group: Mean(value, table.counts[group], table.counts[group])
        for group, value in table.scores.items()
    }
    return Rescored("longbench_v2", found.layout, tuple(scores), {}, groups, None)
