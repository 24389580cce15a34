"""From scores of single LongBench answers to its tables: -E buckets, categories, averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from catekv.errors import UserError
from catekv.tasks.metrics.longbench import task_name

#: category to its English and its Chinese tasks
CATEGORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "single-document": {
        "english": ("narrativeqa", "qasper", "multifieldqa_en"),
        "chinese": ("multifieldqa_zh",),
    },
    "multi-document": {
        "english": ("hotpotqa", "2wikimqa", "musique"),
        "chinese": ("dureader",),
    },
    "summarisation": {
        "english": ("gov_report", "qmsum", "multi_news"),
        "chinese": ("vcsum",),
    },
    "few-shot": {
        "english": ("trec", "triviaqa", "samsum"),
        "chinese": ("lsht",),
    },
    "synthetic": {
        "english": ("passage_count", "passage_retrieval_en"),
        "chinese": ("passage_retrieval_zh",),
    },
    "code": {"english": ("lcc", "repobench-p"), "chinese": ()},
}
#: the 16 tasks that papers on KV caches report
ENGLISH = tuple(task for tasks in CATEGORIES.values() for task in tasks["english"])
CHINESE = tuple(task for tasks in CATEGORIES.values() for task in tasks["chinese"])
#: the 13 tasks of LongBench-E
EVEN = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec"),
    *("triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
BUCKETS = ("0-4k", "4-8k", "8k+")


class Mean(NamedTuple):
    """A mean (None of nothing), how many values are in it, and how many there should be."""

    value: float | None
    number: int
    of: int


def percent(scores: Sequence[float]) -> float | None:
    """Mean of scores in [0, 1], times 100, 2 decimals; None where there is none."""
    return round(100 * sum(scores) / len(scores), 2) if scores else None


def bucket(length: int) -> str:
    """The -E bucket of a sample by its field ``length`` (words, or characters in Chinese)."""
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def bucket_scores(scores: Sequence[float], lengths: Sequence[int]) -> dict[str, Mean]:
    """Percent per -E bucket; an empty one is None with number 0 (not a number in the original).

    Raises:
        UserError: scores and lengths differ in number.
    """
    if len(scores) != len(lengths):
        raise UserError(f"{len(scores)} scores but {len(lengths)} lengths; give one per score")
    parts: dict[str, list[float]] = {name: [] for name in BUCKETS}
    for score, length in zip(scores, lengths, strict=True):
        parts[bucket(length)].append(score)
    return {name: Mean(percent(part), len(part), len(part)) for name, part in parts.items()}


def averages(scores: Mapping[str, float], language: str = "english") -> dict[str, Mean]:
    """Means of task scores per category and over all tasks of a language.

    Args:
        scores: task to its score, in any unit; tasks of the other language are left out.
        language: "english" or "chinese".

    Returns:
        A mean per category, ``"tasks"`` over all tasks (what papers on KV caches report) and
        ``"categories"`` over the categories that have one.

    Raises:
        UserError: unknown task or language.
    """
    if language not in ("english", "chinese"):
        raise UserError(f"unknown language {language!r}; valid: english, chinese")
    known = {task_name(task): value for task, value in scores.items()}

    def mean(tasks: Sequence[str]) -> Mean:
        values = [known[task] for task in tasks if task in known]
        return Mean(sum(values) / len(values) if values else None, len(values), len(tasks))

    table = {name: mean(tasks[language]) for name, tasks in CATEGORIES.items() if tasks[language]}
    full = [part.value for part in table.values() if part.value is not None]
    return {
        **table,
        "tasks": mean(ENGLISH if language == "english" else CHINESE),
        "categories": Mean(sum(full) / len(full) if full else None, len(full), len(table)),
    }
