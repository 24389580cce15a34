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

from catekv import tasks
from catekv.cache.continuation import feed
from catekv.evaluation.run.measuring import split_prompt
from catekv.methods import Method, Needs, create
from catekv.tasks.core.prompt import encode
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
    found: list[Answer] = []
    needs = Needs.of_all(methods.values())
    for sample in samples:
        prompt = encode(sample, model.tokenizer, chat_template)
        for question in questions:
            context_ids, question_ids = split_prompt(prompt, question)
            dense = model.observe(context_ids, needs=needs, chunk_size=chunk_size)

            def keep(
                label: str,
                official: float,
                log_probability: float,
                sample: Sample = sample,
                question: str = question,
            ) -> None:
                found.append(
                    Answer(label, sample.task, sample.index, question, official, log_probability)
                )

            context = dense.compress(create("full"))
            answer = _generate(model, context, question_ids, sample)
            official = _score(model, answer, sample)
            _, log_probability = check_answer(model, context, question_ids, answer, sample)
            keep(FULL, official, log_probability)
            for label, method in methods.items():
                context = dense.compress(method)
                same, log_probability = check_answer(model, context, question_ids, answer, sample)
                own = official
                if not same:
                    own = _score(model, _generate(model, context, question_ids, sample), sample)
                keep(label, own, log_probability)
            advance()
    return found


@torch.no_grad()
def check_answer(
    model: CateKVModel,
    context: Context,
    question_ids: Sequence[int],
    answer: Sequence[int],
    sample: Sample,
) -> tuple[bool, float]:
    """Whether the context's own greedy answer is ``answer``, and that answer's log probability."""
    ids = torch.tensor([[*question_ids, *answer]], device=model.device)
    count = len(answer) + 1
    logits = feed(model.model, ids, context.cache.fork(), last=count)[0]
    scores = logits.float().log_softmax(dim=-1)
    target = torch.tensor(list(answer), dtype=torch.long, device=scores.device)
    total = float(scores[: len(answer)].gather(-1, target[:, None]).sum())
    same = bool((scores[: len(answer)].argmax(dim=-1) == target).all())
    if len(answer) < sample.max_new_tokens:
        stops = torch.tensor(model.stop_token_ids(), device=scores.device)
        total += float(scores[-1, stops].logsumexp(dim=-1)) if len(stops) else 0.0
        same = same and bool(torch.isin(scores[-1].argmax(), stops))
    return same, total


def _generate(
    model: CateKVModel, context: Context, question_ids: Sequence[int], sample: Sample
) -> list[int]:
    return model.generate_ids(list(question_ids), context, sample.max_new_tokens).tokens


def _score(model: CateKVModel, answer: Sequence[int], sample: Sample) -> float:
    text = model.tokenizer.decode(list(answer), skip_special_tokens=True)
    return float(tasks.score(text, sample)["official"])


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
