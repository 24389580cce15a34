"""One prompt read and answered with a method: answer, bytes and times, the same way for all.

Both sides of a comparison take the same way: prefill of the whole prompt, which records what the
method needs (``full``: nothing), compression of all layers, decoding; every part timed by itself,
with the device's queue empty at both ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catekv.decode import generation
from catekv.decode.generation import Limits, Session
from catekv.evaluation.run.forcing import forced, log_likelihoods
from experiments.simcalkv.benchmarks import Example

if TYPE_CHECKING:
    from catekv.cache.cache import RaggedCache
    from catekv.methods import Method
    from catekv.model import CateKVModel, Context

MEGABYTE = 2**20
#: tokens that a layer reads at a time
CHUNK_SIZE = 8192


@dataclass(frozen=True)
class Side:
    """One prompt with one method.

    Attributes:
        answer: generated text, or the name of the choice.
        memory_mb: MiB of what the cache holds after the answer. kept_share: entries kept over
            tokens, after compression.
        prefill_s, compress_s, decode_s: seconds. steps: forwards of one token that ``decode_s``
            times; of a choice, tokens of all continuations.
        choice_scores: summed log-probability of every choice.
    """

    answer: str
    memory_mb: float
    kept_share: float
    prefill_s: float
    compress_s: float
    decode_s: float
    steps: int
    choice_scores: tuple[float, ...] = ()

    @property
    def time_s(self) -> float:
        """Prefill, compression and decoding together."""
        return self.prefill_s + self.compress_s + self.decode_s

    @property
    def throughput(self) -> float | None:
        """Decoded tokens per second; None of an answer that ended with its first token."""
        return self.steps / self.decode_s if self.steps else None


def measure(model: CateKVModel, example: Example, method: Method) -> Side:
    """Read the prompt with ``method`` and answer it greedily.

    Raises:
        UserError: the method cannot serve the model, or the prompt exceeds its window.
    """
    dense = model.observe(example.context_ids, chunk_size=CHUNK_SIZE, needs=method.needs)
    generation.synchronize(model.device)
    clock = time.perf_counter()
    context = dense.compress(method)
    generation.synchronize(model.device)
    compress_s = time.perf_counter() - clock
    prefill_s = dense.timings["prefill_seconds"]
    del dense  # the decoding side holds what is left only
    if example.encoded is None:
        answer, decode_s, steps, grown = _generate(model, context, example)
        scores: tuple[float, ...] = ()
    else:
        scores, decode_s, steps, grown = _rate(model, context, example.encoded.continuations,
                                               example.encoded.rated)  # fmt: skip
        answer = best_choice(example, scores)
    return Side(
        answer,
        (context.stored_bytes() + grown) / MEGABYTE,
        context.kept_share(),
        prefill_s,
        compress_s,
        decode_s,
        steps,
        scores,
    )


def answer_of(model: CateKVModel, context: Context, example: Example) -> str:
    """Only the answer: generated text, or the name of the choice."""
    if example.encoded is None:
        return _generate(model, context, example)[0]
    scores = _rate(model, context, example.encoded.continuations, example.encoded.rated)[0]
    return best_choice(example, scores)


def best_choice(example: Example, scores: Sequence[float]) -> str:
    """Name of the most likely choice; ties go to the first."""
    return example.choices[max(range(len(scores)), key=scores.__getitem__)]


def _generate(
    model: CateKVModel, context: Context, example: Example
) -> tuple[str, float, int, int]:
    """Answer, seconds, steps and bytes that the cache grew by."""
    session = Session(context.cache)
    question = context.input_ids.new_zeros(1, 0)
    pieces = generation.answer(
        model.model,
        session,
        question,
        None,
        context.attention_mask,
        context.last_logits,
        Limits(example.max_new_tokens, model.stop_token_ids(), example.stop),
        tokenizer=model.tokenizer if example.stop else None,
    )
    result = generation.finish(pieces)
    text = model.tokenizer.decode(result.tokens, skip_special_tokens=True)
    return text, result.decode_seconds, result.steps, _grown(context.cache, session.cache)


def _rate(
    model: CateKVModel,
    context: Context,
    continuations: Sequence[Sequence[int]],
    rated: Sequence[int],
) -> tuple[tuple[float, ...], float, int, int]:
    """Log-probability of every continuation's rated end, seconds, tokens and bytes of growth."""
    scores: list[float] = []
    grown = 0
    generation.synchronize(model.device)
    clock = time.perf_counter()
    for ids, count in zip(continuations, rated, strict=True):
        cache = context.cache.fork()
        (found,) = forced(
            model,
            context,
            [ids[-count:]],
            [ids[:-count]],
            following=True,
            singly=False,
            cache=cache,
        )
        scores.append(float(log_likelihoods(found, ids[-count:]).sum()))
        grown = max(grown, _grown(context.cache, cache))
    generation.synchronize(model.device)
    seconds = time.perf_counter() - clock
    return tuple(scores), seconds, sum(map(len, continuations)), grown


def _grown(before: RaggedCache, after: RaggedCache) -> int:
    """Bytes of the entries that a cache has got more than another one."""
    entries = [int(sum(int(part.sum()) for part in cache.lengths())) for cache in (before, after)]
    tokens = after.get_seq_length() * sum(part.numel() for part in after.lengths())
    return round((entries[1] - entries[0]) * after.full_bytes() / tokens)
