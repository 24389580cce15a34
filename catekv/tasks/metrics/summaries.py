"""Scores of summaries: CNN/DailyMail, XSum and GovReport."""

from __future__ import annotations

from collections.abc import Sequence

from catekv.errors import UserError
from catekv.tasks.drawing.essay import split_sentences
from catekv.tasks.metrics.rouge import rouge_google, rouge_l_pltrdy
from catekv.tasks.metrics.words import as_list

TASKS = ("cnn_dailymail", "xsum", "gov_report")


def sentences_on_lines(text: str) -> str:
    """One sentence per line, as rougeLsum reads them; given line breaks stay."""
    return "\n".join(
        sentence for line in text.splitlines() for sentence in split_sentences(line) if sentence
    )


def score(task: str, prediction: str, references: str | Sequence[str]) -> dict[str, float]:
    """F of all kinds of ROUGE that are reported for a task.

    ``rouge1``, ``rouge2``, ``rougeL`` and ``rougeLsum`` are rouge_score's with stemmer, sentences
    on lines; ``rouge_l_pltrdy``, LongBench's number, comes with gov_report.

    Raises:
        UserError: unknown task.
    """
    if task not in TASKS:
        raise UserError(f"unknown summarisation task {task!r}; available: {', '.join(TASKS)}")
    wanted = as_list(references)
    found = rouge_google(
        sentences_on_lines(prediction), [sentences_on_lines(text) for text in wanted], stemmer=True
    )
    scores = {kind: value.f for kind, value in found.items()}
    if task == "gov_report":
        scores["rouge_l_pltrdy"] = rouge_l_pltrdy(prediction, wanted).f
    return scores
