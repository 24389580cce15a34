"""Scores of LongBench v1: the rule of each of its 21 tasks, one answer at a time.

:func:`score` rates one answer; :mod:`catekv.tasks.metrics.longbench_tables` averages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from catekv.errors import UserError
from catekv.tasks.metrics.chinese import qa_f1_zh, rouge_l_zh
from catekv.tasks.metrics.edit import edit_similarity
from catekv.tasks.metrics.rouge import rouge_l_pltrdy
from catekv.tasks.metrics.words import as_list, qa_f1

#: task to the name of its metric
METRICS = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "multifieldqa_zh": "qa_f1_zh",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "dureader": "rouge_l_zh",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "vcsum": "rouge_l_zh",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "lsht": "classification",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "passage_retrieval_zh": "retrieval_zh",
    "lcc": "edit_similarity",
    "repobench-p": "edit_similarity",
}
#: tasks of which only the first line of an answer counts
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")


def first_line(prediction: str) -> str:
    """The first line after leading newlines; other white space stays."""
    return prediction.lstrip("\n").split("\n", 1)[0]


def count_score(prediction: str, reference: str | int) -> float:
    """Share of the digit runs that equal the reference, as strings; 0 without digits."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(reference)) / len(numbers) if numbers else 0.0


def retrieval_score(prediction: str, reference: str, language: str = "en") -> float:
    """Share of the digit runs that equal the number in "Paragraph N" (``"zh"``: "段落N").

    Raises:
        UserError: the reference names no paragraph, or another language is asked for.
    """
    words = {"en": "Paragraph ", "zh": "段落"}
    if language not in words:
        raise UserError(f"unknown language {language!r}; valid: {', '.join(words)}")
    named = re.search(rf"{words[language]}(\d+)", reference)
    if named is None:
        raise UserError(
            f"reference {reference!r} names no paragraph; expected {words[language]}N with a number"
        )
    return count_score(prediction, named.group(1))


def classification(
    prediction: str, reference: str, all_classes: Sequence[str], *, strict: bool = False
) -> float:
    """1 / (number of class names in the prediction) if the reference is one of them, else 0.

    Class names that are a part of the reference do not count. The published loop takes them out of
    the list it walks along and so passes over the one after each; that is the default, ``strict``
    drops all of them.
    """
    named = [name for name in all_classes if name in prediction]

    def part(name: str) -> bool:
        return name != reference and name in reference

    if strict:
        named = [name for name in named if not part(name)]
    else:
        place = 0
        while place < len(named):
            if part(named[place]):
                named.remove(named[place])
            place += 1
    return 1 / len(named) if reference in named else 0.0


def task_name(task: str) -> str:
    """A LongBench task without "longbench/" and "_e"; ``UserError`` lists the tasks."""
    name = task.removeprefix("longbench/").removesuffix("_e")
    if name not in METRICS:
        raise UserError(f"unknown LongBench task {task!r}; available: {', '.join(METRICS)}")
    return name


def score(
    task: str,
    prediction: str,
    references: str | Sequence[str],
    all_classes: Sequence[str] | None = None,
    *,
    strict: bool = False,
    backend: str = "difflib",
) -> float:
    """The score of one answer, the best over its references.

    Args:
        task: one of :data:`METRICS`; "longbench/" before and "_e" after it are allowed.
        all_classes: the class names of trec and lsht.
        strict: for trec and lsht, see :func:`classification`.
        backend: for lcc and repobench-p, see :func:`catekv.tasks.metrics.edit.text_ratio`.

    Raises:
        UserError: unknown task; class names missing; jieba missing for a Chinese task.
    """
    name = task_name(task)
    metric = METRICS[name]
    if name in FIRST_LINE:
        prediction = first_line(prediction)
    if metric == "classification" and all_classes is None:
        raise UserError(f"the score of {name} needs its class names (field all_classes)")
    rules: dict[str, Callable[[str], float]] = {
        "qa_f1": lambda wanted: qa_f1(prediction, wanted),
        "qa_f1_zh": lambda wanted: qa_f1_zh(prediction, wanted),
        "rouge_l": lambda wanted: rouge_l_pltrdy(prediction, wanted).f,
        "rouge_l_zh": lambda wanted: rouge_l_zh(prediction, wanted).f,
        "classification": lambda wanted: classification(
            prediction, wanted, all_classes or (), strict=strict
        ),
        "count": lambda wanted: count_score(prediction, wanted),
        "retrieval": lambda wanted: retrieval_score(prediction, wanted),
        "retrieval_zh": lambda wanted: retrieval_score(prediction, wanted, "zh"),
        "edit_similarity": lambda wanted: edit_similarity(prediction, wanted, backend),
    }
    return max(map(rules[metric], as_list(references)), default=0.0)
