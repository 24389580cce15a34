"""Accuracy of many methods on the same prompts, at little cost.

The prompt is read once and compressed by every method. The full cache's answer is generated once;
a method is then checked with one forward over that answer: where every token is its own first
choice too, its answer is the same. Only the others generate, several as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from catekv.decode.context import stack
from catekv.evaluation.run.asking import Trial, ask, official_scores, text_of
from catekv.evaluation.run.forcing import forced, log_likelihoods
from catekv.methods import Method, Needs, create
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel, Context

FULL = "full"
#: Contexts that are decoded as one batch: at most so many, and no more than hold together twice the
#: bytes of the full cache, or these.
_MOST_TOGETHER = 16
_SMALL_BYTES = 1 << 28


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
            whole = dense.compress(create("full"))
            generation = ask(model, whole, [trial])
            full = generation.tokens
            (official,) = official_scores([text_of(model, generation)], sample)
            likely: dict[str, float] = {}
            others: dict[str, Context] = {}
            for label, method in {FULL: None, **methods}.items():
                context = whole if method is None else dense.compress(method)
                same, likely[label] = check_answer(model, context, trial.question_ids, full, sample)
                if method is not None and not same:
                    others[label] = context
            scores = dict.fromkeys(likely, official)
            scores.update(zip(others, _scores(model, list(others.values()), trial), strict=True))
            answers += [
                Answer(label, sample.task, sample.index, question, scores[label], likely[label])
                for label in likely
            ]
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


def _scores(model: CateKVModel, contexts: Sequence[Context], trial: Trial) -> list[float]:
    """Official scores of the greedy answers from contexts of one prompt."""
    texts: list[str] = []
    for together in _batches(contexts):
        context = together[0] if len(together) == 1 else stack(together)
        generation = ask(model, context, [trial] * len(together))
        texts += [text_of(model, generation, place) for place in range(len(together))]
    return official_scores(texts, trial.sample)


def _batches(contexts: Sequence[Context]) -> Iterator[Sequence[Context]]:
    """Neighbours that are decoded together; one that goes on compressing stays alone."""
    batch: list[Context] = []
    for context in contexts:
        alone = any(layer.store is not None for layer in context.cache.ragged_layers)
        held = sum(one.stored_bytes() for one in [*batch, context])
        full = len(batch) == _MOST_TOGETHER or held > max(2 * context.full_bytes(), _SMALL_BYTES)
        if batch and (alone or full):
            yield batch
            batch = []
        batch.append(context)
        if alone:
            yield batch
            batch = []
    if batch:
        yield batch


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
