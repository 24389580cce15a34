"""Benchmark tasks: build, read, write and score samples. Knows nothing of models.

``tasks.build("ruler/vt", tokenizer, length=4096, count=8)`` makes samples,
:func:`catekv.tasks.core.prompt.encode` turns one into token ids, ``tasks.score`` rates an answer.
"""

from __future__ import annotations

from catekv.tasks import metrics
from catekv.tasks.building import build, generate, max_new_tokens
from catekv.tasks.core import prompt
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.ruler.tasks import PUBLISHED, RULER
from catekv.tasks.files import read, write
from catekv.tasks.registry import available, find

__all__ = [
    "PUBLISHED",
    "RULER",
    "Sample",
    "available",
    "build",
    "find",
    "generate",
    "max_new_tokens",
    "metric",
    "metrics",
    "prompt",
    "read",
    "score",
    "write",
]


def metric(name: str) -> str:
    """Short name of a task's official score, e.g. ``"all"``, ``"part"``, ``"qa_f1"``."""
    return find(name).metric


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of one answer, each in [0, 1].

    Returns:
        ``official``: the benchmark's own score; ``strict``: the same without its leniencies (equal
        where it has none); and further scores by name, as the task's family explains.
    """
    return find(sample.task).score(prediction, sample)
