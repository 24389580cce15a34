"""What is compared: full attention in several implementations, and the methods.

A variant knows how to build a :class:`Stepper` for one length and batch size: something that
decodes one token for every sequence each time it is called.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from catekv.cache.cache import RaggedCache, uncompressed_layers
from catekv.cache.plain_layers import entry_lengths, tensors_of
from catekv.decode import rotary
from catekv.decode.fused import FusedStep, chosen_step
from catekv.decode.generation import synchronize
from catekv.decode.step import DecodeStep
from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import dense
from catekv.evaluation.efficiency.arguments import BASELINES
from catekv.evaluation.efficiency.clock import capture
from catekv.evaluation.efficiency.fill import (
    fill_random_,
    kept_lengths,
    random_cache,
    refuse_other_layers,
)
from catekv.evaluation.efficiency.measurement import Measurement
from catekv.evaluation.efficiency.memory import DoesNotFitError, Peak
from catekv.kernels.ragged import storage_bytes
from catekv.methods import create
from catekv.methods.base import Method
from catekv.methods.stores.quantise import QuantisedStore
from catekv.model import CateKVModel
from catekv.models.compat import cache_argument, decoder_layers
from catekv.prefill.capacity import refuse_unless_fits

KERNEL, DYNAMIC = "full, our kernel", "full, DynamicCache"
FILLS = ("random", "prefill")


@dataclass(frozen=True)
class Setting:
    """One length and batch size of one model, and how it is measured.

    ``steps`` is the number of decode steps that a cache must have room for. ``graph`` is ``auto``,
    ``on`` or ``off``. ``distinct`` layers of a random cache have memory of their own (None: all).
    """

    model: CateKVModel
    length: int
    batch: int
    steps: int
    fill: str = "random"
    chunk_size: int = 8192
    graph: str = "auto"
    seed: int = 0
    distinct: int | None = None

    @cached_property
    def prompt(self) -> Tensor:
        """Random token ids [batch, length]."""
        generator = torch.Generator().manual_seed(self.seed)
        vocabulary = int(self.model.model.get_input_embeddings().weight.shape[0])
        shape = (self.batch, self.length)
        return torch.randint(0, vocabulary, shape, generator=generator).to(self.model.device)


class Stepper:
    """One decode step of a whole model, greedily, for every sequence of a batch.

    Attributes:
        captured, fused, reason, graph_bytes: see :class:`Measurement`.
    """

    captured = False
    fused = False
    reason = ""
    graph_bytes: int | None = None

    def step(self) -> None:
        raise NotImplementedError

    def stored_bytes(self) -> int:
        """Bytes of the cache."""
        raise NotImplementedError

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Must be entered around steps."""
        return contextlib.nullcontext()


class RaggedStepper(Stepper):
    """A compressed cache (or one with everything kept) through the project's decode step."""

    def __init__(self, setting: Setting, cache: RaggedCache, logits: Tensor | None = None):
        self.cache = cache
        self.stored = cache.stored_bytes()
        self.decode = DecodeStep(
            setting.model.model,
            cache,
            setting.steps + 1,
            graph=setting.graph,
            fused_step=setting.model.fused_step,
        )
        self.fused = self.decode.fused
        self.tokens = _first_tokens(setting, logits)

    def step(self) -> None:
        logits = self.decode(self.tokens)
        torch.argmax(logits, dim=-1, keepdim=True, out=self.tokens)
        self.captured, self.reason = self.decode.captured, self.decode.reason or ""
        self.graph_bytes = self.decode.graph_bytes

    def stored_bytes(self) -> int:
        return self.stored


class DenseStepper(Stepper):
    """Full attention by another library on a cache of fixed length."""

    def __init__(self, setting: Setting, library: dense.Library):
        self.model = setting.model
        self.cache = dense.dense_cache(
            setting.model,
            library,
            setting.length,
            setting.batch,
            setting.seed,
            setting.distinct,
        )
        self.tokens = _first_tokens(setting, None)
        self.positions = torch.full_like(self.tokens, setting.length)
        # the same step as the methods have, so that only attention and cache differ
        chosen = chosen_step(setting.model.model, setting.model.fused_step)
        self.step_of_model = chosen if isinstance(chosen, FusedStep) else None
        self.fused = self.step_of_model is not None
        self.run: Callable[[], object] = self._forward
        if setting.graph == "off":
            self.reason = "turned off"
        else:
            inner = setting.model.model
            with self.context(), rotary.fixed_frequencies(inner, self.positions) as self.kept:
                self._forward()
                self.run, self.reason = capture(self._forward, setting.model.device)
        self.captured = not self.reason

    def _forward(self) -> Tensor:
        if self.step_of_model is not None:
            logits = self.step_of_model(self.tokens, self.positions, self.cache)
        else:
            logits = self.model.model(
                self.tokens,
                **cache_argument(self.model.model, self.cache),
                position_ids=self.positions,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return torch.argmax(logits, dim=-1, keepdim=True, out=self.tokens)

    def step(self) -> None:
        self.run()

    def stored_bytes(self) -> int:
        return dense.stored_bytes(self.cache)

    def context(self) -> contextlib.AbstractContextManager[None]:
        return dense.measured_attention(self.model)


class DynamicStepper(Stepper):
    """The model with transformers' own cache, which copies itself at every step."""

    reason = "as transformers runs it"

    def __init__(self, setting: Setting, cache: Any, logits: Tensor | None = None):
        self.model, self.cache = setting.model, cache
        self.tokens = _first_tokens(setting, logits)

    def step(self) -> None:
        logits = self.model.model(
            self.tokens,
            **cache_argument(self.model.model, self.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        torch.argmax(logits, dim=-1, keepdim=True, out=self.tokens)

    def stored_bytes(self) -> int:
        return storage_bytes([item for layer in self.cache.layers for item in tensors_of(layer)])


def _first_tokens(setting: Setting, logits: Tensor | None) -> Tensor:
    """Static int64 [batch, 1]."""
    if logits is not None:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.ones(setting.batch, 1, dtype=torch.long, device=setting.model.device)


@dataclass(frozen=True)
class Variant:
    """One row of a table before it is measured.

    Attributes:
        method: False for full attention.
        method_for: what a context of so many tokens is compressed with.
        build: makes the stepper and notes in the measurement what that cost.
        absent: why it cannot run here, or nothing.
        shares_layers: whether layers of its random cache can share memory.
    """

    label: str
    model: CateKVModel
    method: bool
    method_for: Callable[[int], Method]
    build: Callable[[Setting, Measurement], Stepper]
    absent: str = ""
    shares_layers: bool = True

    def kept(self, tokens: int) -> float | None:
        """Tokens per head after a context of so many (the mean); None where the prompt decides."""
        try:
            table = kept_lengths(self.model, self.method_for(tokens), tokens)
        except UserError:
            return None
        return float(table.double().mean())


def variants(
    model: CateKVModel, specs: Sequence[MethodSpec], baselines: Sequence[str] = BASELINES
) -> list[Variant]:
    """The baselines that were asked for and the methods, in the order of the rows.

    Raises:
        UserError: unknown baseline.
    """
    found = []
    for name in baselines:
        if name not in BASELINES:
            raise UserError(f"unknown baseline {name!r}; use {', '.join(BASELINES)}")
    others = uncompressed_layers(model.config)
    for name in (name for name in BASELINES if name in baselines):
        if name == "kernel":
            found.append(_method_variant(KERNEL, model, _full, False))
        elif name == "dynamic":
            found.append(Variant(DYNAMIC, model, False, _full, _build_dynamic, shares_layers=False))
        else:
            library = dense.LIBRARIES[name]
            found.append(
                Variant(
                    library.label,
                    model,
                    False,
                    _full,
                    lambda setting, _, library=library: DenseStepper(  # type: ignore[misc]
                        setting, library
                    ),
                    # a window or a state read as the whole context would be another model
                    f"reads whole contexts only, not {others}"
                    if others
                    else library.absent(model.device),
                )
            )
    for spec in specs:
        found.append(
            _method_variant(
                spec.label,
                model,
                lambda tokens, spec=spec: spec.for_prompt(  # type: ignore[misc]
                    tokens, model.shape
                ),
                True,
            )
        )
    return found


def _full(tokens: int) -> Method:
    return create("full")


def _method_variant(
    label: str, model: CateKVModel, method_for: Callable[[int], Method], is_method: bool
) -> Variant:
    def build(setting: Setting, measurement: Measurement) -> Stepper:
        method = method_for(setting.length)
        if setting.fill == "random":
            cache = random_cache(
                model, method, setting.length, setting.batch, setting.seed, setting.distinct
            )
            _note_kept(measurement, cache.lengths())
            measurement.code_bytes = _code_bytes(cache)
            return RaggedStepper(setting, cache)
        _check_prefill(setting, method)
        peak = Peak(model.device)
        clock = time.perf_counter()
        context = model.prefill(setting.prompt, chunk_size=setting.chunk_size, method=method)
        synchronize(model.device)
        measurement.first_token_seconds = time.perf_counter() - clock
        measurement.prefill_peak_bytes = peak.since_start()
        measurement.prefill_seconds = context.timings["prefill_seconds"]
        measurement.compress_seconds = context.timings["compress_seconds"]
        _note_kept(measurement, context.cache.lengths())
        measurement.code_bytes = _code_bytes(context.cache)
        return RaggedStepper(setting, context.cache, context.last_logits)

    return Variant(label, model, is_method, method_for, build)


def _check_prefill(setting: Setting, method: Method) -> None:
    """Raise :class:`DoesNotFitError` where the prefill would be refused."""
    model = setting.model
    try:
        refuse_unless_fits(
            model.model,
            method,
            setting.length,
            setting.batch,
            setting.chunk_size,
            model.device,
            model.shape,
        )
    except UserError as error:
        raise DoesNotFitError(str(error)) from error


def _note_kept(measurement: Measurement, lengths: Sequence[Tensor]) -> None:
    # layers without a KV cache store no entries
    means = [layer.double().mean() for layer in lengths if layer.numel()]
    measurement.kept_tokens = float(torch.stack(means).mean()) if means else 0.0


def _code_bytes(cache: RaggedCache) -> int | None:
    """Of the entries that are stored in fewer bits, with scales and what is left of them."""
    stores = [layer.store for layer in cache.ragged_layers]
    coded = [one.quantised for one in stores if isinstance(one, QuantisedStore)]
    tensors = [tensor for prefix in coded for tensor in prefix.named_tensors().values()]
    return sum(tensor.nbytes for tensor in tensors) if coded else None


def _build_dynamic(setting: Setting, measurement: Measurement) -> Stepper:
    from transformers.cache_utils import DynamicCache

    model = setting.model
    cache = DynamicCache(config=model.config)
    measurement.kept_tokens = float(setting.length)
    if setting.fill == "random":
        refuse_other_layers(model)
        shape = (setting.batch, model.shape.kv_heads, setting.length, model.shape.head_dim)
        layer: Any
        for index, (layer, block) in enumerate(
            zip(cache.layers, decoder_layers(model.model), strict=True)
        ):
            empty = torch.empty(0, dtype=model.dtype, device=next(block.parameters()).device)
            layer.lazy_initialization(empty, empty)
            layer.keys = fill_random_(empty.new_empty(shape), setting.seed + 2 * index)
            layer.values = fill_random_(empty.new_empty(shape), setting.seed + 2 * index + 1)
        return DynamicStepper(setting, cache)
    peak = Peak(model.device)
    clock = time.perf_counter()
    logits = torch.empty(0)
    for part in setting.prompt.split(setting.chunk_size, dim=1):
        logits = model.model(
            part, **cache_argument(model.model, cache), use_cache=True, logits_to_keep=1
        ).logits
    synchronize(model.device)
    measurement.first_token_seconds = measurement.prefill_seconds = time.perf_counter() - clock
    measurement.prefill_peak_bytes = peak.since_start()
    # layers with a window hold less than the context
    _note_kept(measurement, [entry_lengths(layer, setting.batch) for layer in cache.layers])
    return DynamicStepper(setting, cache, logits[:, -1])
