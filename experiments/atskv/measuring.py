"""One example with one method: bytes per tier, times, answer, and how likely the right one was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catekv.evaluation.run.asking import Trial, ask, official_scores, text_of
from catekv.evaluation.run.forcing import forced, log_likelihoods
from catekv.methods import Method
from catekv.methods.atskv.store import TierStore
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.decode.context import Context
    from catekv.model import CateKVModel

#: tasks of these metrics want all of their references in one answer
_ALL_REFERENCES = ("all",)


@dataclass(frozen=True)
class Tiers:
    """Bytes of a compressed context.

    Attributes:
        active: keys, values and what belongs to them that attention reads directly.
        features: what relevance is computed from. passive: entries that wait elsewhere.
        full: of an uncompressed cache of the same context.
    """

    active: int
    features: int
    passive: int
    full: int

    @property
    def device(self) -> int:
        """What must be where attention is computed."""
        return self.active + self.features


@dataclass(frozen=True)
class Measurement:
    """One example with one method.

    Attributes:
        tokens: of the prompt. new_tokens: of the answer. kept_share: entries stored over tokens.
        active_share: entries in the active tier over tokens.
        first_token_s: prefill, compression and the question. generation_s: question and answer.
        steps, decode_s: forwards of one token, and their time.
        accuracy: the task's score of the new tokens. loss, answer_tokens: summed negative log
            likelihood of the reference's tokens, and their number.
    """

    tokens: int
    new_tokens: int
    tiers: Tiers
    kept_share: float
    active_share: float
    prefill_s: float
    compress_s: float
    first_token_s: float
    generation_s: float
    decode_s: float
    steps: int
    accuracy: float
    loss: float
    answer_tokens: int
    answer: str


def measure(model: CateKVModel, sample: Sample, method: Method, new_tokens: int) -> Measurement:
    """Read the context with ``method``, then ask.

    Raises:
        UserError: the method cannot serve the model, or the prompt exceeds its window.
    """
    trial = Trial.of(sample, model.tokenizer, "agnostic")
    context = model.prefill(trial.context_ids, method=method)
    generation = ask(model, context, [trial], min(new_tokens, sample.max_new_tokens))
    answer = text_of(model, generation)
    (accuracy,) = official_scores([answer], sample)
    loss, count = answer_loss(model, context, trial.question_ids, sample)
    prefill_s = context.timings["prefill_seconds"]
    compress_s = context.timings["compress_seconds"]
    return Measurement(
        trial.tokens,
        len(generation.tokens),
        tier_bytes(context),
        context.kept_share(),
        active_share(context),
        prefill_s,
        compress_s,
        prefill_s + compress_s + generation.question_seconds,
        generation.question_seconds + generation.decode_seconds,
        generation.decode_seconds,
        generation.steps,
        accuracy,
        loss,
        count,
        answer,
    )


def tier_bytes(context: Context) -> Tiers:
    """Bytes really allocated, by tier.

    A method that keeps entries in host memory its own way counts as passive on a GPU, where that is
    another memory.
    """
    passive = features = 0
    for layer in context.cache.ragged_layers:
        store = layer.store
        if isinstance(store, TierStore):
            found = store.describe()
            passive += found["passive"]
            features += found["features"]
        elif store is not None and context.input_ids.is_cuda:
            passive += store.describe()["host"]
    stored = context.stored_bytes()
    return Tiers(stored - passive - features, features, passive, context.full_bytes())


def active_share(context: Context) -> float:
    """Entries that are active after compression over all tokens of the prompt, on average."""
    shares = []
    for layer in context.cache.ragged_layers:
        store = layer.store
        if isinstance(store, TierStore):
            shares.append(float(store.active().float().mean()))
        else:
            shares.append(float(layer.lengths().float().mean()) / context.tokens)
    return sum(shares) / len(shares)


def reference_text(sample: Sample) -> str:
    """The right answer as one text."""
    if sample.metric in _ALL_REFERENCES:
        return " ".join(sample.outputs)
    return sample.outputs[0]


def answer_loss(
    model: CateKVModel, context: Context, question: list[int], sample: Sample
) -> tuple[float, int]:
    """Summed negative log likelihood of the right answer's tokens, and their number.

    The answer is fed token by token, as it would be generated, whatever the method, so that the
    losses of all methods are rounded alike.
    """
    ids = model.tokenizer.encode(reference_text(sample), add_special_tokens=False)
    (scores,) = forced(model, context, [ids], [question], singly=True)
    return -sum(log_likelihoods(scores, ids).tolist()), len(ids)


def perplexity(losses: list[tuple[float, int]]) -> float | None:
    """exp of the mean loss per token over (loss, tokens) of several answers."""
    tokens = sum(count for _, count in losses)
    if not tokens:
        return None
    mean = sum(loss for loss, _ in losses) / tokens
    return math.exp(mean) if mean < 700 else math.inf
