"""Accuracy of many methods on the same prompts, at little cost.

The prompt is read once and compressed by every method. The full cache's answer is generated once;
a method is then checked with one forward over that answer: where every token is its own first
choice too, its answer is the same. Only the others generate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from catekv.evaluation.run.asking import Trial, official_scores, text_of
from catekv.evaluation.run.forcing import forced, log_likelihoods
from catekv.methods import Method, Needs, create
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel, Context

FULL = "full"


@dataclass(frozen=True)
class Answer:
    """One method on one sample.

    ``official`` is the task's score in [0, 1]; ``log_probability`` the summed natural-log
    probability of the full cache's answer (its end included).
    """

    label: str
    task: str
    index: int
    question: str
    official: float
    log_probability: float


def score_methods(
    model: CateKVModel,
    samples: Sequence[Sample],
    methods: Mapping[str, Method],
    questions: Sequence[str] = ("agnostic",),
    *,
    chat_template: str = "auto",
    chunk_size: int = 8192,
    advance: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Every method, and the full cache under the label ``full``, on every sample.

    Args:
        model: its own method is not used.
        samples: with their answers.
        methods: by label.
        questions: ``agnostic`` (asked after compression) and/or ``aware`` (inside the context).
        advance: called after every sample and question mode.
    """
    answers: list[Answer] = []
    needs = Needs.of_all(methods.values())
    for sample in samples:
        for question in questions:
            trial = Trial.of(sample, model.tokenizer, question, chat_template)
            dense = model.observe(trial.context_ids, needs=needs, chunk_size=chunk_size)
            context = dense.compress(create("full"))
            full, official = _answer(model, context, trial)
            for label, method in {FULL: None, **methods}.items():
                score = official
                if method is not None:
                    context = dense.compress(method)
                same, log_probability = check_answer(
                    model, context, trial.question_ids, full, sample
                )
                if method is not None and not same:
                    _, score = _answer(model, context, trial)
                answers.append(
                    Answer(label, sample.task, sample.index, question, score, log_probability)
                )
            advance()
    return answers


def check_answer(
    model: CateKVModel,
    context: Context,
    question_ids: Sequence[int],
    answer: Sequence[int],
    sample: Sample,
) -> tuple[bool, float]:
    """Whether the context's own greedy answer is ``answer``, and that answer's log probability."""
    (scores,) = forced(model, context, [answer], [question_ids], following=True)
    total = float(log_likelihoods(scores, answer).sum())
    same = scores[:-1].argmax(dim=-1).tolist() == list(answer)
    if len(answer) < sample.max_new_tokens:
        stops = torch.tensor(model.stop_token_ids(), device=scores.device)
        total += float(scores[-1, stops].logsumexp(dim=-1)) if len(stops) else 0.0
        same = same and bool(torch.isin(scores[-1].argmax(), stops))
    return same, total


def _answer(model: CateKVModel, context: Context, trial: Trial) -> tuple[list[int], float]:
    """The greedy answer's ids and its official score."""
    sample = trial.sample
    generation = model.generate_ids(trial.question_ids, context, sample.max_new_tokens)
    (score,) = official_scores([text_of(model, generation)], sample)
    return generation.tokens, score


def mean_by_task(answers: Sequence[Answer], label: str) -> dict[str, float]:
    """Mean official score of a label by task, both question modes together."""
    scores: dict[str, list[float]] = {}
    for answer in answers:
        if answer.label == label:
            scores.setdefault(answer.task, []).append(answer.official)
    return {task: sum(values) / len(values) for task, values in scores.items()}


def mean_log_probability(answers: Sequence[Answer], label: str) -> float:
    """Mean log probability of the full cache's answers under a label."""
    values = [answer.log_probability for answer in answers if answer.label == label]
    return sum(values) / len(values)
