"""RULER's tasks: how a sample is planned, how long an answer may be, how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from catekv.tasks import metrics
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.ruler.building import PREFIX, RulerTask, generate
from catekv.tasks.families.ruler.cwe import CommonOptions, CommonPlan
from catekv.tasks.families.ruler.fwe import FrequentOptions, FrequentPlan
from catekv.tasks.families.ruler.niah import NeedleOptions, NeedlePlan
from catekv.tasks.families.ruler.qa import DocumentOptions, DocumentPlan
from catekv.tasks.families.ruler.vt import ChainOptions, ChainPlan
from catekv.tasks.wording.small import SmallWording


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of one answer.

    Returns:
        ``official``: RULER's substring score (share of references, or any of them);
        ``strict``: the same for whole words;
        ``catekv``: the score that CateKV and ShadowKV use for the task (an empty answer is 0);
        ``set_f1``: for variable tracking and common words, F1 over answer-shaped words.
    """
    references = list(sample.outputs)
    everything = sample.metric == "all"
    official = metrics.string_match_all if everything else metrics.string_match_part
    strict = metrics.strict_match_all if everything else metrics.strict_match_part
    scores = {
        "official": official(prediction, references),
        "strict": strict(prediction, references),
    }
    task = TASKS[sample.task.removeprefix(PREFIX)]
    single = len(references) == 1 and task.family_metric is metrics.needle_score
    scores["catekv"] = task.family_metric(prediction, references[0] if single else references)
    if task.set_f1:
        scores["set_f1"] = metrics.set_f1(prediction, references)
    return scores


def _task(
    name: str,
    plan: Any,
    options: Any,
    max_new_tokens: int,
    metric: str,
    family: Callable[[str, Any], float],
    set_f1: bool = False,
) -> RulerTask:
    return RulerTask(
        name=PREFIX + name,
        options=options,
        max_new_tokens=max_new_tokens,
        metric=metric,
        generate=generate,
        score=score,
        small=name in SmallWording.tasks,
        plan=plan,
        family_metric=family,
        set_f1=set_f1,
    )


def _needle(name: str, family: Callable[[str, Any], float], **options: Any) -> RulerTask:
    return _task(name, NeedlePlan, NeedleOptions(**options), 128, "all", family)


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
    _task("vt", ChainPlan, ChainOptions(), 30, "all", metrics.multi_words, True),
    _task("vt_dense", ChainPlan, ChainOptions(dense=True), 30, "all", metrics.multi_words, True),
    _task("cwe", CommonPlan, CommonOptions(), 120, "all", metrics.multi_words, True),
    _task("fwe", FrequentPlan, FrequentOptions(), 50, "all", metrics.multi_words),
    _task("qa_1", DocumentPlan, DocumentOptions(), 32, "part", metrics.string_match_part),
    _task("qa_2", DocumentPlan, DocumentOptions(hops=2), 32, "part", metrics.string_match_part),
)
#: by the name without ``ruler/``
TASKS: dict[str, RulerTask] = {task.name.removeprefix(PREFIX): task for task in _TASKS}
#: the 13 tasks of RULER, and the 12 of them that CateKV and ShadowKV report
RULER = tuple(name for name in TASKS if name != "vt_dense")
PUBLISHED = tuple(name for name in RULER if name != "cwe")
