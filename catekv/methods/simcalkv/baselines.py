"""The simplified namesakes that SimCalKV was compared with; not the methods of those names.

All remove a share of the tokens by column sums, as SimCalKV does, and append while decoding. What
that comparison did by mistake and cannot have meant (kept entries averaged with nothing, ratios of
1 and more) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.kernels.ragged import Merged
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.cam import merge_probability
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.budgets import proportional
from catekv.methods.formulas.draws import uniform_numbers
from catekv.methods.formulas.merging import group_mean, group_shares, nearest_kept, removed_count
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.h2o import received_attention
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.selection import MergedSelection
from catekv.methods.simcalkv.merge import removal_order
from catekv.methods.simcalkv.method import last_query_logits
from catekv.models.shape import ModelShape

PAPER = "a baseline of Similarity-Aware KV Cache Merging with Bias Calibration, MSN 2025"
DUPLICATES = ("last", "all")
RemovedType = TypeVar("RemovedType", bound="RemovedShare")


@dataclass(frozen=True)
class RemovedShare(Method):
    """Base: remove the share ``ratio`` of every head's tokens, the lowest column sums first.

    Args:
        ratio: share removed, from 0 to 1.
        total: entries of all layers and heads together, exact, instead of ``ratio``.
    """

    example = Example({"ratio": 0.6}, {"ratio": 0.0}, original=False)
    memory_formula = MemoryFormula("T - max(1, floor(T*ratio))")

    ratio: float = method_option(0.4, least=0, most=1)
    total: int | None = method_option(None, least=0)

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def ratios(self, layers: int) -> list[float]:
        """Share that each layer removes."""
        return [self.ratio] * layers

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        ratios = self.ratios(shape.layers)
        if self.total is None:
            kept = [tokens - removed_count(tokens, ratio) for ratio in ratios]
            return torch.tensor([[count] * shape.kv_heads for count in kept])
        weights = (1 - torch.tensor(ratios, dtype=torch.float64))[:, None].repeat(1, shape.kv_heads)
        total = min(self.total, tokens * weights.numel())
        return proportional(weights, total, "largest_remainder", tokens, redistribute=True)

    def with_total(self: RemovedType, total: int, tokens: int, shape: ModelShape) -> RemovedType:
        """The method keeping exactly ``total`` entries of a prompt of ``tokens`` tokens."""
        kept = min(1.0, total / (shape.layers * shape.kv_heads * tokens))
        return replace(self, total=total, ratio=1 - kept)

    def for_heads(self: RemovedType, heads: slice) -> RemovedType:
        if self.total is not None:
            raise NeedsAllHeadsError(
                f"{self.name}: a total is split over all heads, which no process of a "
                "tensor-parallel group has; use ratio"
            )
        return self

    def kept_counts(self, observed: Observed) -> list[int]:
        """Entries that each head of a layer keeps."""
        table = self.budget_table(observed.tokens, observed.shape)
        return [int(count) for count in table[observed.layer]]

    def received(self, observed: Observed) -> Tensor:
        assert observed.column_sums is not None
        return received_attention(observed.column_sums, observed.keys.shape[1])

    def merge(self, observed: Observed, b: int, head: int, received: Tensor, kept: int) -> Merged:
        """What becomes of one row; ``received`` float32 [tokens]."""
        raise NotImplementedError

    def select_observed(self, observed: Observed) -> Selection:
        received, kept = self.received(observed), self.kept_counts(observed)
        return MergedSelection(
            merged=[
                [
                    self.merge(observed, b, head, received[b, head], kept[head])
                    for head in range(len(kept))
                ]
                for b in range(received.shape[0])
            ],
        )


def _split(received: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Removed positions in ascending order of score, and the mask of those that stay."""
    removed = removal_order(received, received.shape[0] - kept)
    stays = torch.ones_like(received, dtype=torch.bool)
    stays[removed] = False
    return removed, stays


@register
@dataclass(frozen=True)
class SimCalPyramidInfer(RemovedShare):
    """Drop a share of the tokens by column sums, a little more in every layer.

    A ratio that reaches 1 is refused (the published program crashed). The mean ratio is larger than
    ``ratio``, so that the published comparison gave it a smaller cache; ``recommended`` shifts the
    ratios so that the mean, and the exact number of entries, is what ``ratio`` says.

    Args:
        ratio: share that the first layer removes (with ``rescale``: that all remove on average).
        total: entries of all layers and heads together, exact, instead of ``ratio``.
        step: added to the ratio from group to group of layers.
        every: layers per group: 1 (Llama) or 2 (Qwen).
        rescale: keep the mean.
    """

    name: ClassVar[str] = "simcalkv_pyramidinfer"
    example = Example({"ratio": 0.6}, {"ratio": 0.0, "step": 0.0})
    paper: ClassVar[str] = PAPER
    recommended: ClassVar[dict[str, Any]] = {"rescale": True}

    step: float = method_option(0.01, least=0)
    every: int = method_option(1, least=1)
    rescale: bool = False

    def ratios(self, layers: int) -> list[float]:
        rise = [self.step * (layer // self.every) for layer in range(layers)]
        shift = sum(rise) / layers if self.rescale or self.total is not None else 0.0
        ratios = [self.ratio + one - shift for one in rise]
        if not self.rescale and self.total is None and ratios[-1] >= 1:
            first = next(index for index, ratio in enumerate(ratios) if ratio >= 1)
            raise UserError(
                f"{self.name}: ratio {self.ratio} with step {self.step} removes everything from "
                f"layer {first} of {layers} on; lower ratio or step, or use rescale=True"
            )
        return [min(1.0, max(0.0, ratio)) for ratio in ratios]

    def validate(self, shape: ModelShape) -> None:
        self.ratios(shape.layers)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        if not self.rescale or self.total is not None:
            return super().budget_table(tokens, shape)
        # all heads of a layer keep equally many
        kept = shape.layers * (tokens - removed_count(tokens, self.ratio))
        weights = 1 - torch.tensor(self.ratios(shape.layers), dtype=torch.float64)
        table = proportional(weights, kept, "largest_remainder", tokens, redistribute=True)
        return table[:, None].repeat(1, shape.kv_heads)

    def select_observed(self, observed: Observed) -> Selection:
        received = self.received(observed)
        removed = observed.tokens - torch.tensor(self.kept_counts(observed), device=received.device)
        # the lowest go; ties to the lower index, as when tokens are merged
        return Selection(~top_mask(-received, removed))


@register
@dataclass(frozen=True)
class SimCalKeepKV(RemovedShare):
    """Merge each removed token into its nearest kept one by a weighted mean, without votes.

    Keys and values are averaged with weights ``exp(logit)`` of the last prompt query. In that
    comparison several tokens with one target overwrite each other; here the last removed one wins.

    Args:
        ratio: share removed, from 0 to 1.
        total: entries of all layers and heads together, exact, instead of ``ratio``.
        threshold: cosine of the keys that a merge must exceed; others are dropped. -1: all merge.
        duplicates: ``last`` (as run): of several tokens with one target only the one with the
            highest score is merged; ``all`` (recommended): all are.
    """

    name: ClassVar[str] = "simcalkv_keepkv"
    paper: ClassVar[str] = PAPER
    recommended: ClassVar[dict[str, Any]] = {"duplicates": "all"}

    threshold: float = method_option(-1.0, least=-1, most=1)
    duplicates: str = method_option("last", words=DUPLICATES)

    @property
    def needs(self) -> Needs:
        return Needs(window=1, column_sums=True)

    def merge(self, observed: Observed, b: int, head: int, received: Tensor, kept: int) -> Merged:
        removed, stays = _split(received, kept)
        keys, values = observed.keys[b, head], observed.values[b, head]
        if not len(removed) or not kept:
            return Merged(keys[stays], values[stays])
        logits = last_query_logits(observed, b, head)
        target, similarity = nearest_kept(keys[removed], keys[stays])
        merged = similarity > self.threshold
        order = torch.arange(len(removed), device=removed.device)
        last = torch.full((kept,), -1, device=removed.device)
        last = last.scatter_reduce(0, target, order.masked_fill(~merged, -1), "amax")
        if self.duplicates == "last":
            merged = merged & (last[target] == order)
        shares = group_shares(logits[stays], logits[removed], target, merged)[:2]
        touched = (last >= 0)[:, None]
        rows = []
        for source in (keys, values):
            mean = group_mean(source[stays], source[removed], target, shares)
            rows.append(torch.where(touched, mean.to(source.dtype), source[stays]))
        return Merged(*rows)


@register
@dataclass(frozen=True)
class SimCalCaM(RemovedShare):
    """Add an equal part of each drawn removed value to the values of all kept tokens.

    A value is drawn with its column sum over the largest one of the kept tokens as probability.
    CaM itself adds it to the tokens that follow.

    Args:
        ratio: share removed, from 0 to 1.
        total: entries of all layers and heads together, exact, instead of ``ratio``.
        expected: add the expected value instead of drawing (deterministic).
        seed: of the draws; a draw depends on layer, head and position only.
    """

    name: ClassVar[str] = "simcalkv_cam"
    paper: ClassVar[str] = PAPER

    expected: bool = False
    seed: int = method_option(0, least=0)

    def for_heads(self, heads: slice) -> SimCalCaM:
        if not self.expected:
            raise NeedsAllHeadsError(
                "simcalkv_cam: what is drawn for a head depends on its number in the layer, which "
                "a process of a tensor-parallel group does not know; use expected=true"
            )
        return super().for_heads(heads)

    def merge(self, observed: Observed, b: int, head: int, received: Tensor, kept: int) -> Merged:
        removed, stays = _split(received, kept)
        keys, values = observed.keys[b, head], observed.values[b, head]
        if not len(removed) or not kept:
            return Merged(keys[stays], values[stays])
        rank = torch.zeros_like(removed)
        share = merge_probability(received[removed], received[stays], rank, kept, "max")
        if not self.expected:
            numbers = uniform_numbers(self.seed, observed.layer, removed.new_tensor(head), removed)
            share = (numbers < share).float()
        added = share @ values[removed].float() / kept
        return Merged(keys[stays], (values[stays].float() + added).to(values.dtype))
