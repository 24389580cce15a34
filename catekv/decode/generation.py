"""Answering from a compressed context: feed the question, then decode token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from catekv.cache.cache import RaggedCache
from catekv.cache.continuation import feed
from catekv.decode.sampling import Greedy, Sampler, Sampling
from catekv.decode.step import DecodeStep, EagerStep
from catekv.decode.text import TextStream
from catekv.errors import UserError
from catekv.models.compat import input_device
from catekv.models.finite import broken_rows, fault

#: Steps that run before a step is recorded, and that must be left then. Recording costs about as
#: much as this many eager steps, and many answers are shorter than what was allowed.
RECORD_AFTER = 8

#: Stands for a token that cannot be chosen because its logits are not finite.
BROKEN = -1

#: A new piece of text of one sequence of the batch.
Piece = tuple[int, str]


@dataclass(frozen=True)
class Generation:
    """Answers of one run.

    Attributes:
        tokens: the new tokens of the first sequence, without the stop token, and without tokens
            that reach into a stop string. rows: those of every sequence of the batch.
        question_seconds: time of the forward over the question.
        decode_seconds: time of the ``steps`` forwards of one token after it.
        steps: their number. On a GPU the one that was under way when the last sequence ended
            counts too.
        texts: the answers as text, cut before a stop string; None unless text was asked for.
        captured: whether the steps replayed a CUDA graph at the end. reason: why not.
        capture_seconds: time spent on recording it, not part of ``decode_seconds``.
        fused: whether the steps were fused (:mod:`catekv.decode.fused`). fused_reason: why not.
    """

    tokens: list[int]
    rows: list[list[int]]
    question_seconds: float
    decode_seconds: float
    steps: int
    texts: list[str] | None = None
    captured: bool = False
    reason: str | None = None
    capture_seconds: float = 0.0
    fused: bool = False
    fused_reason: str | None = None


@dataclass(frozen=True)
class Limits:
    """When answers end: after ``max_new_tokens``, before one of ``stop_token_ids`` or before one of
    the strings ``stop``, each sequence for itself.

    The first ``min_new_tokens`` tokens are chosen among those that do not end an answer by
    themselves: neither a stop token nor one that is (the end of) a stop string.
    """

    max_new_tokens: int
    stop_token_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("min_new_tokens", 0)):
            count = getattr(self, name)
            if not isinstance(count, Integral) or count < least:
                raise UserError(f"{name} {count!r} must be a whole number, at least {least}")
        strange = [token for token in self.stop_token_ids if not isinstance(token, Integral)]
        if strange:
            raise UserError(
                f"stop_token_ids are token ids, not {strange[0]!r}; pass strings as stop="
            )


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator, so that clocks measure work and not its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Session:
    """A fork of a cache that is fed and decoded from, with its decode step.

    The step of a finished answer can serve the next one: :meth:`rewind` takes the cache back to
    where it began. ``fused_step`` is as in :class:`catekv.decode.step.DecodeStep`.
    """

    def __init__(self, cache: RaggedCache):
        self.cache = cache.fork()
        self.base = cache.get_seq_length()
        self.step: DecodeStep | None = None
        self.fused_step = "auto"

    @property
    def recording_seconds(self) -> float:
        """Time spent so far on recording the step."""
        return 0.0 if self.step is None else self.step.capture_seconds

    def told(self) -> dict[str, Any]:
        """What :class:`Generation` says about the steps."""
        step = self.step
        if step is None:
            ordinary = "the steps were ordinary forwards"
            return {"reason": "no step was recorded", "fused_reason": ordinary}
        return {
            "captured": step.captured,
            "reason": step.reason,
            "fused": step.fused,
            "fused_reason": step.fused_reason,
        }

    def rewind(self) -> None:
        """Forget everything since the context."""
        extra = self.cache.get_seq_length() - self.base
        if extra:
            self.cache.crop(-extra)

    def open(self, model: Any, more: int, mask: Tensor | None, graph: str) -> Callable[..., Tensor]:
        """The decode step from here on; ``more`` tokens may come.

        On a GPU it is recorded when it pays (:data:`RECORD_AFTER`), with ``graph="on"`` at once;
        ``off`` runs the same step without recording. Elsewhere steps are ordinary forwards, unless
        one of the two, or a fused step, is asked for.
        """
        room = self.cache.tail_length + int(min(more, self.cache.longest_tail))
        mode = "on" if graph == "on" else "off"
        if self.step is not None:
            self.step.graph, self.step.fused_step = mode, self.fused_step
            self.step.restart(mask, room)
        elif graph == "auto" and self.fused_step != "on" and input_device(model).type != "cuda":
            return EagerStep(model, self.cache, mask)
        else:
            self.step = DecodeStep(
                model, self.cache, room, graph=mode, attention_mask=mask,
                fused_step=self.fused_step,
            )  # fmt: skip
        return self.step


class _Answers:
    """What every sequence of a batch has answered so far."""

    def __init__(self, numbers: Sequence[int], limits: Limits, tokenizer: Any):
        batch = len(numbers)
        self.numbers = numbers
        self.limits = limits
        self.stops = frozenset(limits.stop_token_ids)
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.open = set(range(batch))
        self.streams = None
        if tokenizer is not None:
            self.streams = [TextStream(tokenizer, limits.stop) for _ in range(batch)]

    def add(self, tokens: Sequence[int]) -> list[Piece]:
        """One token for every sequence; those that have ended ignore theirs."""
        pieces = []
        for row in sorted(self.open):
            token = tokens[row]
            if token == BROKEN:
                raise fault(f"the answer of sequence {self.numbers[row]} goes on")
            if token in self.stops:
                pieces += self._end(row)
                continue
            self.rows[row].append(token)
            if self.streams is not None:
                stream = self.streams[row]
                pieces.append((row, stream.add(token)))
                if stream.stopped:
                    self.open.discard(row)
                    self.rows[row] = stream.tokens_before_stop()
                    continue
            if len(self.rows[row]) == self.limits.max_new_tokens:
                pieces += self._end(row)
        return [(self.numbers[row], text) for row, text in pieces if text]

    def _end(self, row: int) -> list[Piece]:
        self.open.discard(row)
        return [] if self.streams is None else [(row, self.streams[row].finish())]

    @property
    def texts(self) -> list[str] | None:
        return None if self.streams is None else [stream.text for stream in self.streams]


class _Mail:
    """Brings chosen tokens to the host. On a GPU they travel while the next step runs."""

    def __init__(self, batch: int, device: torch.device):
        self.device = device
        self.travels = device.type == "cuda"
        if self.travels:
            self._buffer = torch.empty(batch, 1, dtype=torch.long, pin_memory=True)
            self._arrived = torch.cuda.Event()

    def send(self, tokens: Tensor) -> None:
        if not self.travels:
            self._buffer = tokens
            return
        self._buffer.copy_(tokens, non_blocking=True)
        self._arrived.record(torch.cuda.current_stream(self.device))

    def receive(self) -> list[int]:
        """The tokens that were sent last."""
        if self.travels:
            self._arrived.synchronize()
        return self._buffer[:, 0].tolist()


def answer(
    model: Any,
    session: Session,
    question: Tensor,
    question_mask: Tensor | None,
    context_mask: Tensor | None,
    last_logits: Tensor,
    limits: Limits,
    sampling: Sampling | None = None,
    tokenizer: Any = None,
    graph: str = "auto",
    sequences: Sequence[int] | None = None,
) -> Generator[Piece, None, Generation]:
    """Feed a question after the context in ``session`` and decode; a generator of text pieces.

    Args:
        question, question_mask: [batch, tokens], left-padded; may have no tokens.
        context_mask: [batch, context columns]; masks are None without padding.
        last_logits: [batch, vocabulary] of the context's last token, used if there is no question.
        limits: when answers end. sampling: how tokens are drawn; None: greedily.
        tokenizer: decodes while tokens come in; None: nothing is yielded, no stop strings.
        graph: ``auto``, ``on`` or ``off``, see :meth:`Session.open`.
        sequences: their numbers where they are a part of a larger batch; default: 0, 1, ...

    Yields:
        (sequence, new text).

    Returns:
        :class:`Generation`.

    Raises:
        UserError: an answer whose logits are not finite.
    """
    mask = joined_mask(question, question_mask, context_mask, session.cache.get_seq_length())
    clock = time.perf_counter()
    logits = _ask(model, session.cache, question, mask, last_logits)
    device = logits.device
    synchronize(device)
    question_seconds = time.perf_counter() - clock

    numbers = range(question.shape[0]) if sequences is None else sequences
    answers = _Answers(numbers, limits, tokenizer)
    most = limits.max_new_tokens
    choose = Greedy() if sampling is None else Sampler(sampling, numbers, most, device)
    clock, recorded = time.perf_counter(), session.recording_seconds
    steps = yield from _decode(model, session, logits, mask, answers, choose, tokenizer, graph)
    synchronize(device)
    recording = session.recording_seconds - recorded
    return Generation(
        answers.rows[0],
        answers.rows,
        question_seconds,
        time.perf_counter() - clock - recording,
        steps,
        answers.texts,
        capture_seconds=recording,
        **session.told(),
    )


def _decode(
    model: Any,
    session: Session,
    logits: Tensor,
    mask: Tensor | None,
    answers: _Answers,
    choose: Callable[[Tensor, int], Tensor],
    tokenizer: Any,
    graph: str,
) -> Generator[Piece, None, int]:
    """Token after token from the logits of the question; returns the number of steps."""
    limits, device = answers.limits, logits.device
    endings = _endings(limits, tokenizer, logits)
    mail = _Mail(logits.shape[0], device)
    most = limits.max_new_tokens
    step: Callable[..., Tensor] | None = None
    steps = 0
    for index in range(most):
        with torch.no_grad():
            if index < limits.min_new_tokens and endings is not None:
                logits = logits.index_fill(-1, endings, float("-inf"))
            broken = broken_rows(logits)
            tokens = choose(logits, index).masked_fill(broken, 0)
        # the host refuses it where it belongs to an answer; a row that has ended may hold anything
        mail.send(tokens.masked_fill(broken, BROKEN))
        last = index + 1 == most
        if last or not mail.travels:
            yield from answers.add(mail.receive())
        if last or not answers.open:
            break
        if step is None:
            step = session.open(model, most, mask, graph)
        elif session.step is not None and graph == "auto" and steps == RECORD_AFTER < most - index:
            session.step.capture()
        logits = step(tokens)
        steps += 1
        if mail.travels:
            yield from answers.add(mail.receive())
            if not answers.open:
                break
    return steps


def _endings(limits: Limits, tokenizer: Any, logits: Tensor) -> Tensor | None:
    """Ids of the tokens that end an answer by themselves; None if nobody asks."""
    if not limits.min_new_tokens:
        return None
    ids = set(limits.stop_token_ids)
    for string in limits.stop if tokenizer is not None else ():
        ids.update(tokenizer.encode(string, add_special_tokens=False)[-1:])
    # an end token that the model has no logits for, or -1 for none, is never chosen anyway
    chosen = sorted(token for token in ids if 0 <= token < logits.shape[-1])
    return torch.tensor(chosen, dtype=torch.long, device=logits.device)


def finish(
    pieces: Generator[Piece, None, Generation], stream: Callable[..., Any] | None = None
) -> Generation:
    """Run :func:`answer` to its end; ``stream`` is called as ``stream(text, sequence)``."""
    while True:
        try:
            row, text = next(pieces)
        except StopIteration as end:
            result: Generation = end.value
            return result
        if stream is not None:
            stream(text, row)


def joined_mask(
    question: Tensor, question_mask: Tensor | None, context_mask: Tensor | None, seen: int
) -> Tensor | None:
    """[batch, columns] of context and question; None without padding."""
    if context_mask is None and question_mask is None:
        return None
    past = context_mask
    if past is None:
        past = question.new_ones(question.shape[0], seen)
    if question_mask is None:
        question_mask = torch.ones_like(question)
    return torch.cat([past.long(), question_mask.long()], dim=-1)


def _ask(
    model: Any, cache: RaggedCache, question: Tensor, mask: Tensor | None, last_logits: Tensor
) -> Tensor:
    """Logits [batch, vocabulary] after the question."""
    if not question.shape[1]:
        return last_logits
    return feed(model, question, cache, mask)[:, -1]
