"""The namesakes that ATSKV was compared with: simpler than the methods whose names they carry.

They are here so that ATSKV's comparison can be repeated. DynamicKV and RocketKV as published are
:mod:`catekv.methods.dynamickv` and :mod:`catekv.methods.rocketkv`; the comparison's sliding window
is ``sliding_window``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.kernels.ragged import Merged
from catekv.methods.atskv.control import simple_controller
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.example import WHOLE, Example, MemoryFormula
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import assign, method_option
from catekv.methods.registry import register
from catekv.methods.selection import MergedSelection
from catekv.models.shape import ModelShape

PAPER = "Adaptive Token-Relevance Sparse KV-Cache for Efficient Long Context Understanding"
#: Products of a share and a number of tokens that miss a whole number by less are that number.
_GUARD = 1e-9


def most_received(column_sums: Tensor, count: int) -> Tensor:
    """The ``count`` tokens that received most attention from all heads and queries together, ties
    to the lower index: bool [batch, tokens]."""
    received = column_sums.float().sum(dim=1)
    return top_mask(received, torch.tensor(count, device=received.device))


class _OneMask(Method):
    """Base of the methods whose heads all keep the same tokens."""

    def for_heads(self, heads: slice) -> Method:
        raise NeedsAllHeadsError(
            f"{self.name} has one mask for all heads of a layer, and no process of a "
            "tensor-parallel group has them all; use one process"
        )


@register
@dataclass(frozen=True)
class AtskvDynamicKV(_OneMask):
    """Keep the share ``ratio`` of each layer's tokens: those with most mean received attention.

    All heads of a layer keep the same tokens. :meth:`controlled` gives the method with which to go
    on after measuring memory and quality. (The released code averaged attention over the wrong axis
    and so chose arbitrary tokens; this is what it meant.)

    Args:
        ratio: share of tokens kept, or one per layer.
        min_ratio, max_ratio: limits of the ratio.
        budget: tokens kept per head instead of a share; a prompt of at most so many stays whole.
    """

    name: ClassVar[str] = "atskv_dynamic_kv"
    example = Example({"ratio": 0.4}, {"budget": WHOLE})
    memory_formula = MemoryFormula("floor(T*ratio)")
    paper: ClassVar[str] = f"{PAPER} (its comparison's 'dynamic_kv')"

    ratio: float | Sequence[float] = 0.5
    min_ratio: float = method_option(0.1, least=0, most=1)
    max_ratio: float = method_option(0.9, least=0, most=1)
    budget: int | None = method_option(None, least=1)

    def __post_init__(self) -> None:
        if isinstance(self.ratio, Sequence):
            assign(self, ratio=tuple(float(value) for value in self.ratio))
        super().__post_init__()
        if self.min_ratio > self.max_ratio:
            raise UserError(
                f"atskv_dynamic_kv: limits {self.min_ratio} and {self.max_ratio} must be ordered "
                "and inside [0, 1]"
            )
        for value in self._given():
            if not self.min_ratio <= value <= self.max_ratio:
                raise UserError(
                    f"atskv_dynamic_kv: ratio {value} is outside its limits [{self.min_ratio}, "
                    f"{self.max_ratio}]"
                )

    def _given(self) -> tuple[float, ...]:
        return tuple(self.ratio) if isinstance(self.ratio, Sequence) else (self.ratio,)

    def _ratios(self, layers: int) -> tuple[float, ...]:
        given = self._given()
        if not isinstance(self.ratio, Sequence):
            return given * layers
        if len(given) != layers:
            raise UserError(
                f"atskv_dynamic_kv: {len(given)} ratios for {layers} layers; pass one per layer"
            )
        return given

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def validate(self, shape: ModelShape) -> None:
        self._ratios(shape.layers)

    def controlled(self, memory: float, target: float, performance: float) -> AtskvDynamicKV:
        """The method after one step of the controller, in every layer; ``memory`` and ``target``
        in the same unit."""
        limits = (self.min_ratio, self.max_ratio)
        ratios = [
            simple_controller(value, memory, target, performance, *limits)
            for value in self._given()
        ]
        return replace(self, ratio=ratios if isinstance(self.ratio, Sequence) else ratios[0])

    def kept_tokens(self, tokens: int, layer: int, layers: int) -> int:
        """Tokens kept of a prompt in one layer."""
        if self.budget is not None:
            return min(tokens, self.budget)
        return max(1, int(tokens * self._ratios(layers)[layer] + _GUARD))

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        self.validate(shape)
        kept = [self.kept_tokens(tokens, layer, shape.layers) for layer in range(shape.layers)]
        return torch.tensor(kept)[:, None].expand(-1, shape.kv_heads).clone()

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.column_sums is not None
        count = self.kept_tokens(observed.tokens, observed.layer, observed.num_layers)
        keep = most_received(observed.column_sums, count)
        return Selection(keep[:, None].expand(observed.keys.shape[:3]).clone())


@register
@dataclass(frozen=True)
class AtskvRocketKV(_OneMask):
    """Evict half of the tokens by received attention, and zero most channels of what stays.

    Tokens are the same in all heads. The channels where a head's kept keys are smallest (mean
    absolute value) become zero in keys and values; they still take their memory. This is neither
    stage of RocketKV.

    Args:
        eviction: share of the tokens evicted.
        sparsity: share of the channels that become zero.
        budget: tokens kept per head instead of a share; a prompt of at most so many is untouched.
    """

    name: ClassVar[str] = "atskv_rocket_kv"
    example = Example({}, {"budget": WHOLE}, original=False)
    memory_formula = MemoryFormula("T - floor(T*eviction)")
    paper: ClassVar[str] = f"{PAPER} (its comparison's 'rocket_kv')"

    eviction: float = method_option(0.5, least=0, most=1)
    sparsity: float = method_option(0.7, least=0, most=1)
    budget: int | None = method_option(None, least=1)

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def kept_tokens(self, tokens: int) -> int:
        """Tokens kept of a prompt."""
        if self.budget is not None:
            return min(tokens, self.budget)
        return max(1, tokens - int(tokens * self.eviction + _GUARD))

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.full((shape.layers, shape.kv_heads), self.kept_tokens(tokens))

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.column_sums is not None
        keys, values = observed.keys, observed.values
        batch, heads, tokens, dim = keys.shape
        zeroed = int(dim * self.sparsity + _GUARD)
        keep = most_received(observed.column_sums, self.kept_tokens(tokens))
        if zeroed == 0 or (self.budget is not None and tokens <= self.budget):
            return Selection(keep[:, None].expand(batch, heads, tokens).clone())
        if values.shape[-1] != dim:
            raise UserError(
                f"atskv_rocket_kv zeroes the same channels in keys and values, which have {dim} "
                f"and {values.shape[-1]} in this model"
            )
        merged = []
        for b in range(batch):
            own_keys, own_values = keys[b][:, keep[b]], values[b][:, keep[b]]
            size = own_keys.float().abs().mean(dim=1)
            open_channels = top_mask(size, torch.tensor(dim - zeroed))[:, None]
            own_keys, own_values = own_keys * open_channels, own_values * open_channels
            merged.append([Merged(own_keys[h], own_values[h]) for h in range(heads)])
        return MergedSelection(merged=merged)
