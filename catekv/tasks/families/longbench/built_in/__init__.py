"""Generated rows for every task, shaped like the published ones.

They are made only where somebody asks for ``source=built-in``. Questions have one answer that the
context holds, a summary says again what the text reports, examples and copies are drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catekv.tasks.drawing import chinese, world
from catekv.tasks.families.longbench.built_in import examples
from catekv.tasks.families.longbench.built_in.base import Draws, RowPlan
from catekv.tasks.families.longbench.built_in.code import ClassPlan, ProjectPlan
from catekv.tasks.families.longbench.built_in.examples import ExamplePlan
from catekv.tasks.families.longbench.built_in.questions import (
    CountPlan,
    PassagePlan,
    RetrievalPlan,
    StoryPlan,
)
from catekv.tasks.families.longbench.built_in.summaries import MeetingPlan, NewsPlan, ReportPlan

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts


def plan(prompts: Prompts, draws: Draws) -> RowPlan:
    """A generated row of a task in the task's language."""
    name = prompts.facts.name
    if name in ("narrativeqa", "qasper"):
        return StoryPlan(prompts, draws)
    if name in ("multifieldqa_en", "hotpotqa", "2wikimqa", "musique"):
        hops, label = (1, "") if name == "multifieldqa_en" else (2, "Passage {}:\n")
        question = world.question(draws.seed("question"), hops)
        others = world.others(draws.seed("others"), question.outputs)
        return PassagePlan(prompts, question, others, label, draws)
    if name in ("multifieldqa_zh", "dureader"):
        label = "文章{}\n" if name == "dureader" else ""
        question = chinese.question(draws.seed("question"))
        others = chinese.others(draws.seed("others"), question.outputs)
        return PassagePlan(prompts, question, others, label, draws)
    if name == "gov_report":
        return ReportPlan(prompts, draws)
    if name == "multi_news":
        return NewsPlan(prompts, draws)
    if name in ("qmsum", "vcsum"):
        return MeetingPlan(prompts, draws, asks=name == "qmsum")
    if name == "trec":
        return ExamplePlan(prompts, draws, examples.typed_question, "\n", examples.TYPES)
    if name == "triviaqa":
        return ExamplePlan(prompts, draws, examples.answered_passage, "\n\n")
    if name == "samsum":
        return ExamplePlan(prompts, draws, examples.summarised_talk, "\n\n")
    if name == "lsht":
        classes = chinese.NEWS_CLASSES
        return ExamplePlan(prompts, draws, examples.classified_news, "\n", classes)
    if name == "passage_count":
        return CountPlan(prompts, draws)
    if name in ("passage_retrieval_en", "passage_retrieval_zh"):
        return RetrievalPlan(prompts, draws)
    return ClassPlan(prompts, draws) if name == "lcc" else ProjectPlan(prompts, draws)
