"""Running a model over a prompt with little memory.

Prefill goes layer by layer: a decoder layer reads the whole prompt in chunks before the next one
starts, so that only one layer is uncompressed at a time and temporaries are as large as a chunk.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from catekv.cache.attention import DeferredMask, deferred_masks
from catekv.cache.cache import RaggedCache
from catekv.cache.continuation import (
    SINGLE_TOKENS,
    continues_by,
    difference,
    feed,
    positions_of,
    refuse_counted_padding,
    tolerance,
    trial_ids,
)
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.methods.base import Needs
from catekv.models.compat import cache_argument, decoder_layers, output_projections
from catekv.models.finite import refuse_not_finite
from catekv.models.weights_identity import WeightsIdentity
from catekv.prefill.recording import hidden_states_shown
from catekv.prefill.repeating import Wording, repeat_prompt

#: Why a model's layers cannot be driven in chunks, None if they can, by the tokens of the trial
#: that told it.
_verdicts: WeakKeyDictionary[torch.nn.Module, dict[int, str | None]] = WeakKeyDictionary()
#: A trial reads past a window that a prompt outgrows, up to this; longer ones behave alike.
LONGEST_WINDOW_TRIED = 8192
_locks: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()


@torch.no_grad()
def prefill(
    model: torch.nn.Module,
    input_ids: Tensor,
    cache: RaggedCache,
    attention_mask: Tensor | None = None,
    chunk_size: int | None = 8192,
    wording: Wording | None = None,
) -> Tensor:
    """Feed a prompt and return the logits of its last column, [batch, vocabulary].

    Args:
        input_ids: [batch, tokens], left-padded where lengths differ.
        cache: receives the prompt; made with ``prefill_tokens`` it is compressed layer by layer.
        attention_mask: [batch, tokens], 0 on padding. None: no padding.
        chunk_size: tokens a layer processes at a time; None: the whole prompt.
        wording: asks for a repetition, where the cache's method wants one.
    """
    options: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}
    options.update(cache_argument(model, cache))
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is not None:
        refuse_counted_padding(model)
        options.update(attention_mask=attention_mask, position_ids=positions_of(attention_mask))
    # before anything is recorded: it may run the model on tokens of its own
    chunk = usable_chunk(model, input_ids.shape[1], chunk_size)
    if cache.settings.needs.output_projection:
        cache.settings.projections = output_projections(model)
    with contextlib.ExitStack() as stack:
        if cache.settings.needs.hidden_states:
            stack.enter_context(hidden_states_shown(model, cache, RaggedLayer.record_hidden))
        if cache.settings.needs.attention_inputs:
            stack.enter_context(
                hidden_states_shown(model, cache, RaggedLayer.record_inputs, to_attention=True)
            )
        if chunk is not None:
            stack.enter_context(layerwise(model, cache, chunk))
        logits: Tensor = model(input_ids, **options).logits[:, -1]
    refuse_not_finite(logits, "the prompt ends")
    if cache.settings.needs.repeats:
        _repeat(model, input_ids, cache, attention_mask, chunk_size, wording or Wording())
    if cache.due:
        cache.compress()
    cache.weights = WeightsIdentity.of(model)
    return logits


def _repeat(
    model: torch.nn.Module,
    input_ids: Tensor,
    cache: RaggedCache,
    attention_mask: Tensor | None,
    chunk_size: int | None,
    wording: Wording,
) -> None:
    """See :func:`catekv.prefill.repeating.repeat_prompt`."""

    def read(ids: Tensor, mask: Tensor | None) -> None:
        # a forward that is not driven in chunks may hold a mask of all queries and keys
        chunk = usable_chunk(model, input_ids.shape[1] + ids.shape[1], chunk_size)
        driven = contextlib.nullcontext() if chunk is None else layerwise(model, cache, chunk)
        with driven:
            feed(model, ids, cache, mask)

    repeat_prompt(model, cache, input_ids, attention_mask, wording, read)


def usable_chunk(model: torch.nn.Module, tokens: int, chunk_size: int | None) -> int | None:
    """Tokens that a layer processes at a time in a prefill of ``tokens`` tokens; None: all of them,
    because they are no more than that or the model's layers cannot be driven in chunks."""
    if chunk_size is None:
        return None
    if not isinstance(chunk_size, Integral) or chunk_size < 1:
        raise UserError(f"chunk_size must be a whole number of at least 1, not {chunk_size!r:.40}")
    in_chunks = tokens > chunk_size and _why_not_layerwise(model, tokens) is None
    return chunk_size if in_chunks else None


def _why_not_layerwise(model: torch.nn.Module, tokens: int) -> str | None:
    """None if the model's layers can be driven in chunks over a prompt of so many tokens, else the
    reason (warned about once). A window that hides nothing of the prompt is not tried."""
    ids = trial_ids(model, longest=min(tokens, LONGEST_WINDOW_TRIED))
    verdicts = _verdicts.setdefault(model, {})
    if ids.shape[1] not in verdicts:
        reason = verdicts[ids.shape[1]] = _try_layerwise(model, ids)
        if reason is not None:
            warnings.warn(
                f"{type(model).__name__} cannot be prefilled layer by layer in chunks ({reason}); "
                "its prompts run in one forward and need more memory",
                stacklevel=3,
            )
    return verdicts[ids.shape[1]]


@torch.no_grad()
def _try_layerwise(model: torch.nn.Module, ids: Tensor) -> str | None:
    """Compare a chunked with an ordinary forward over ``ids`` [1, tokens]."""
    if continues_by(model) == SINGLE_TOKENS:
        return "some of its layers cannot go on with several tokens"
    logits = []
    for chunk in (None, max(1, ids.shape[1] * 3 // 7)):
        cache = RaggedCache(model.config, None, hold=Needs(window=1))
        context = contextlib.nullcontext() if chunk is None else layerwise(model, cache, chunk)
        try:
            with context:
                output = model(
                    ids, **cache_argument(model, cache), use_cache=True, logits_to_keep=1
                )
        except Exception as error:
            if chunk is None:
                raise
            return f"{type(error).__name__}: {error}"
        logits.append(output.logits[:, -1])
    plain, chunked = logits
    found = difference(chunked, plain)
    # a wrong mask or position changes logits by far more than rounding does
    return None if found <= 4 * tolerance(model, plain) else f"logits differ by {found:.1e}"


@contextlib.contextmanager
def layerwise(model: torch.nn.Module, cache: RaggedCache, chunk_size: int) -> Iterator[None]:
    """Within it a forward runs every decoder layer over chunks of the prompt.

    The last layer returns the last position only: neither the final norm nor the head sees the
    whole prompt. Rotary tables are made per chunk. One such forward at a time per model; other
    threads' forwards are not touched.
    """
    layers = decoder_layers(model)
    lock = _locks.setdefault(model, threading.RLock())
    with lock, deferred_masks(), contextlib.ExitStack() as restored:
        for rotary in _rotary_modules(model, layers):
            restored.enter_context(_replaced_forward(rotary, _deferred_rotary(rotary.forward)))
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            chunked = _in_chunks(layer.forward, cache, index, chunk_size, last)
            restored.enter_context(_replaced_forward(layer, chunked))
        yield


@contextlib.contextmanager
def _replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it ``module`` runs ``forward``; other threads go on with what it ran before."""
    own, original = module.__dict__.get("forward"), module.forward
    owner = threading.get_ident()

    def dispatch(*arguments: Any, **options: Any) -> Any:
        chosen = forward if threading.get_ident() == owner else original
        return chosen(*arguments, **options)

    module.forward = dispatch
    try:
        yield
    finally:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own


def _rotary_modules(
    model: torch.nn.Module, layers: Sequence[torch.nn.Module]
) -> list[torch.nn.Module]:
    """Modules that make rotary tables for all layers at once (and not inside one of them)."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    return [
        module
        for module in model.modules()
        if id(module) not in inside and type(module).__name__.endswith("RotaryEmbedding")
    ]


@dataclass(frozen=True)
class DeferredRotary:
    """A call of a rotary module that is made for one chunk at a time.

    Tables over the whole prompt would stay alive through all layers. A model that looks into them
    before its layers do gets whole ones.
    """

    forward: Callable[..., Any]
    states: Tensor
    positions: Tensor
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def build(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """Tables [batch or 1, stop - start, dim] of some columns."""
        # the largest position goes along: some scalings depend on the length of the whole prompt
        farthest = self.positions.amax(dim=-1, keepdim=True)
        positions = torch.cat([self.positions[:, start:stop], farthest], dim=-1)
        tables = self.forward(self.states, positions, *self.arguments, **self.options)
        return tuple(table[:, :-1] for table in tables)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.build(0, self.positions.shape[-1]))

    def __getitem__(self, index: int) -> Tensor:
        return self.build(0, self.positions.shape[-1])[index]


def _deferred_rotary(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(states: Tensor, position_ids: Tensor, *arguments: Any, **options: Any) -> Any:
        deferred = DeferredRotary(forward, states, position_ids, arguments, options)
        if position_ids.ndim == 2:
            tables = forward(states, position_ids[:, -1:], *arguments, **options)
            per_token = isinstance(tables, tuple) and all(
                isinstance(table, Tensor) and table.ndim == 3 and table.shape[1] == 1
                for table in tables
            )
            if per_token:
                return deferred
        return forward(states, position_ids, *arguments, **options)

    return run


def _in_chunks(
    forward: Callable[..., Any], cache: RaggedCache, index: int, chunk_size: int, last: bool
) -> Callable[..., Any]:
    def run(hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        tokens = hidden_states.shape[1]
        layer: Any = cache.layers[index]

        def piece(value: Any, start: int, stop: int) -> Any:
            if isinstance(value, DeferredRotary):
                return value.build(start, stop)
            if isinstance(value, DeferredMask):
                length, offset = layer.get_mask_sizes(stop - start)
                ragged = isinstance(layer, RaggedLayer)
                return value.build(stop - start, layer.get_seq_length(), length, offset, ragged)
            if isinstance(value, tuple | list) and all(isinstance(v, Tensor) for v in value):
                return type(value)(piece(v, start, stop) for v in value)
            # everything given per token has the tokens in its second dimension
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == tokens:
                return value[:, start:stop]
            return value

        def chunk(start: int) -> tuple[Tensor, tuple[Any, ...] | None]:
            """Run one chunk in place; its last position, and what the layer returns besides."""
            stop = min(start + chunk_size, tokens)
            result = forward(
                hidden_states[:, start:stop],
                *(piece(value, start, stop) for value in arguments),
                **{name: piece(value, start, stop) for name, value in options.items()},
            )
            part, rest = (result[0], result[1:]) if isinstance(result, tuple) else (result, None)
            # in place: the layer's input is not needed again and the prompt is held once
            hidden_states[:, start:stop] = part
            return part[:, -1:].clone(), rest

        for start in range(0, tokens, chunk_size):
            newest, rest = chunk(start)
        output = newest if last else hidden_states
        return output if rest is None else (output, *rest)

    return run
