"""The tasks by name: how a sample is planned, how long an answer may be, how it is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from catekv.errors import UserError
from catekv.tasks import metrics
from catekv.tasks.ruler.cwe import CommonOptions, CommonPlan
from catekv.tasks.ruler.fwe import FrequentOptions, FrequentPlan
from catekv.tasks.ruler.niah import NeedleOptions, NeedlePlan
from catekv.tasks.ruler.plan import Plan, Request
from catekv.tasks.ruler.qa import DocumentOptions, DocumentPlan
from catekv.tasks.ruler.vt import ChainOptions, ChainPlan

PREFIX = "ruler/"


@dataclass(frozen=True)
class Task:
    """One task.

    ``family_metric`` is the score that CateKV and ShadowKV report for it; ``set_f1`` says whether
    the answer is a set of words that could be guessed by naming everything.
    """

    name: str
    plan: Callable[[Request, Any], Plan]
    options: Any
    max_new_tokens: int
    metric: str
    family_metric: Callable[[str, Any], float]
    set_f1: bool = False

    def configured(self, options: dict[str, Any]) -> Any:
        """The task's options with some replaced; ``UserError`` lists the valid ones."""
        valid = [item.name for item in dataclasses.fields(self.options)]
        unknown = sorted(set(options) - set(valid))
        if unknown:
            raise UserError(
                f"task {PREFIX}{self.name} has no option {', '.join(map(repr, unknown))}; "
                f"valid options: {', '.join(valid)}"
            )
        return dataclasses.replace(self.options, **options)


def _needle(name: str, family: Callable[[str, Any], float], **options: Any) -> Task:
    return Task(name, NeedlePlan, NeedleOptions(**options), 128, "all", family)


_TASKS = (
    _needle("niah_single_1", metrics.needle_score),
    _needle("niah_single_2", metrics.needle_score, haystack="essay"),
    _needle("niah_single_3", metrics.needle_score, haystack="essay", value_kind="uuids"),
    _needle("niah_multikey_1", metrics.needle_score, haystack="essay", num_keys=4),
    _needle("niah_multikey_2", metrics.needle_score, haystack="needle"),
    _needle(
        "niah_multikey_3",
        metrics.needle_score,
        haystack="needle",
        key_kind="uuids",
        value_kind="uuids",
    ),
    _needle("niah_multivalue", metrics.multi_number, haystack="essay", num_values=4),
    _needle("niah_multiquery", metrics.multi_number, haystack="essay", num_queries=4),
    Task("vt", ChainPlan, ChainOptions(), 30, "all", metrics.multi_words, True),
    Task("vt_dense", ChainPlan, ChainOptions(dense=True), 30, "all", metrics.multi_words, True),
    Task("cwe", CommonPlan, CommonOptions(), 120, "all", metrics.multi_words, True),
    Task("fwe", FrequentPlan, FrequentOptions(), 50, "all", metrics.multi_words),
    Task("qa_1", DocumentPlan, DocumentOptions(), 32, "part", metrics.string_match_part),
    Task("qa_2", DocumentPlan, DocumentOptions(hops=2), 32, "part", metrics.string_match_part),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
#: the 13 tasks of RULER, and the 12 of them that CateKV and ShadowKV report
RULER = tuple(name for name in TASKS if name != "vt_dense")
PUBLISHED = tuple(name for name in RULER if name != "cwe")


def available() -> list[str]:
    """Names of all tasks, e.g. "ruler/vt"."""
    return [PREFIX + name for name in TASKS]


def find(name: str) -> Task:
    """A task by its name with or without "ruler/"; ``UserError`` lists what exists."""
    short = name.removeprefix(PREFIX)
    if short not in TASKS:
        raise UserError(f"unknown task {name!r}; available: {', '.join(available())}")
    return TASKS[short]
