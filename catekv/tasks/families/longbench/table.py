"""The tasks of LongBench v1: answer length, metric, language, template, stop rules."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.metrics.longbench import FIRST_LINE, METRICS
from catekv.tasks.metrics.longbench_tables import CATEGORIES, CHINESE, EVEN

PREFIX, EVEN_PREFIX, SECOND = "longbench/", "longbench_e/", "longbench_v2"


@dataclass(frozen=True)
class TaskFacts:
    """What is fixed about a task.

    Attributes:
        new_tokens: tokens allowed for the answer.
        metric: name of its rule in :data:`catekv.tasks.metrics.longbench.METRICS`.
        chat: whether the prompt goes into a chat template; few-shot and code prompts do not.
        first_line: only the first line of an answer counts.
        stop: an answer ends before any of these texts.
        min_new_tokens: tokens that an answer has at least.
    """

    name: str
    new_tokens: int
    metric: str
    category: str
    language: str
    chat: bool
    first_line: bool
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0


_NEW_TOKENS = {
    "narrativeqa": 128,
    "qasper": 128,
    "multifieldqa_en": 64,
    "multifieldqa_zh": 64,
    "hotpotqa": 32,
    "2wikimqa": 32,
    "musique": 32,
    "dureader": 128,
    "gov_report": 512,
    "qmsum": 512,
    "multi_news": 512,
    "vcsum": 512,
    "trec": 64,
    "triviaqa": 32,
    "samsum": 128,
    "lsht": 64,
    "passage_count": 32,
    "passage_retrieval_en": 32,
    "passage_retrieval_zh": 32,
    "lcc": 64,
    "repobench-p": 64,
}
_WITHOUT_TEMPLATE = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")


def _category(name: str) -> str:
    return next(
        category
        for category, parts in CATEGORIES.items()
        if name in parts["english"] + parts["chinese"]
    )


def _facts(name: str) -> TaskFacts:
    one_line = name == "samsum"
    return TaskFacts(
        name=name,
        new_tokens=_NEW_TOKENS[name],
        metric=METRICS[name],
        category=_category(name),
        language="zh" if name in CHINESE else "en",
        chat=name not in _WITHOUT_TEMPLATE,
        first_line=name in FIRST_LINE,
        stop=("\n",) if one_line else (),
        min_new_tokens=1 if one_line else 0,
    )


TASKS: dict[str, TaskFacts] = {name: _facts(name) for name in METRICS}
FULL_NAMES = (
    *(PREFIX + name for name in TASKS),
    *(EVEN_PREFIX + name for name in EVEN),
    SECOND,
)


def facts(name: str) -> TaskFacts:
    """A task by its name with or without family; ``UserError`` lists what exists."""
    short = name.removeprefix(EVEN_PREFIX).removeprefix(PREFIX)
    if short not in TASKS:
        raise UserError(f"unknown LongBench task {name!r}; available: {', '.join(FULL_NAMES)}")
    return TASKS[short]
