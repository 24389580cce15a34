"""DynamicKV (Zhou et al., 2024): the prompt itself decides how many tokens each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv import kernels
from catekv.errors import NeedsAllHeadsError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.budgets import ROUNDINGS, proportional
from catekv.methods.formulas.scoring import POOLINGS, top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

SCALINGS = ("official", "paper")
SCORE_HEADS = ("query", "kv")


def layer_counts(scores: Tensor, total: int) -> Tensor:
    """How many of the ``total`` best scores of all layers lie in each: int64 [layers].

    ``scores`` [layers, heads, entries]; ties go to the lower index.
    """
    flat = scores.flatten(1)
    total = min(total, flat.numel())
    if total == 0:
        return torch.zeros(flat.shape[0], dtype=torch.int64)
    border = flat.flatten().sort(descending=True).values[total - 1]
    above = (flat > border).sum(dim=-1)
    tied = (flat == border).sum(dim=-1)
    before = tied.cumsum(0) - tied
    room = total - above.sum()
    return (above + torch.minimum(tied, (room - before).clamp(min=0))).cpu()


def layer_budgets(
    scores: Tensor,
    total: int,
    limit: int,
    interval: int = 4,
    scaling: str = "official",
    rounding: str = "floor",
) -> Tensor:
    """Tokens that every head of each layer keeps besides the window: int64 [layers].

    Args:
        scores: [layers, heads, entries], the highest scores of every head.
        total: what is split, the tokens of one head summed over all layers.
        limit: the most that a layer can keep.
        interval: m, layers between two updates; each may only take away.
        scaling: what an update before the last one splits: the tokens of the whole model
            (``official``) or those of the layers seen so far (``paper``).
        rounding: ``floor`` gives what rounding leaves to the last layer, as far as the limit lets
            it. ``largest_remainder`` looks at all layers before anything is taken away, and the sum
            is ``total`` exactly.
    """
    layers, heads = scores.shape[:2]
    counts = layer_counts(scores, total * heads)
    if rounding == "largest_remainder":
        return proportional(counts, total, rounding, limit, redistribute=True)
    kept = torch.full((layers,), limit)
    for seen in range(interval, layers, interval):
        own = total * seen // layers
        part = layer_counts(scores[:seen], own * heads)
        part = proportional(part, total if scaling == "official" else own)
        kept[:seen] = torch.minimum(kept[:seen], part)
    budgets = proportional(counts, total)
    budgets[-1] += total - budgets.sum()
    return torch.minimum(budgets, kept)


@register
@dataclass(frozen=True)
class DynamicKV(Budgeted):
    """Score as SnapKV does, and give each layer the share of the tokens that its scores earn.

    The best scores of all layers are counted; a layer's budget is proportional to its count. All
    heads of a layer keep equally many tokens, each its own. Scores of single query heads decide the
    budgets (``score_heads="kv"``: those of KV heads), their mean over the group which tokens a KV
    head keeps. A prompt of at most ``budget + window`` tokens is kept whole.

    The published code scales every update to the tokens of the whole model, so that updates before
    the last one hardly take anything away; its paper means them to split what the layers seen so
    far would have. What an update took is gone: the kept total may fall short of ``budget`` per
    head, except with ``rounding="largest_remainder"`` (recommended).

    Args:
        budget: mean number of tokens per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``;
            exact with ``rounding="largest_remainder"`` (where heads of a layer then differ by one).
        window: last prompt queries that score the others; always kept (8 or 16).
        r_max: a layer keeps at most ``r_max * budget`` tokens per head (10; 5 in some runs).
        interval: m, layers between two updates.
        kernel: width of the pooling, odd; 1 = none.
        pooling: ``max`` or ``average``.
        scaling: what an update before the last one splits: the tokens of the whole model
            (``official``), or those of the layers seen so far (``paper``).
        rounding: ``floor`` (as released), or ``largest_remainder``: the total is kept exactly.
        score_heads: whose scores decide the budgets: ``query`` heads one by one, or ``kv`` heads.
    """

    name: ClassVar[str] = "dynamickv"
    example = Example({"budget": 10, "window": 4, "kernel": 3, "interval": 1})
    memory_formula = MemoryFormula("budget + window")
    paper: ClassVar[str] = (
        "DynamicKV: Task-Aware Adaptive KV Cache Compression for Long Context LLMs, 2024"
    )
    recommended: ClassVar[dict[str, Any]] = {"scaling": "paper", "rounding": "largest_remainder"}

    edges_option: ClassVar[str] = "window"

    budget: int = 504
    window: int = method_option(8, least=1)
    r_max: float = method_option(10, least=1)
    interval: int = method_option(4, least=1)
    kernel: int = method_option(7, least=1, odd=True)
    pooling: str = method_option("max", words=POOLINGS)
    scaling: str = method_option("official", words=SCALINGS)
    rounding: str = method_option("floor", words=ROUNDINGS)
    score_heads: str = method_option("query", words=SCORE_HEADS)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window, all_layers=True)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        if tokens <= self.budget + self.window and self.total is None:
            return super().budget_table(tokens, shape)
        return Method.budget_table(self, tokens, shape)

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> DynamicKV:
        return replace(super().with_total(total, tokens, shape), rounding="largest_remainder")

    def for_heads(self, heads: slice) -> DynamicKV:
        raise NeedsAllHeadsError(
            "dynamickv compares all heads of all layers, which no process of a tensor-parallel "
            "group has; use one process"
        )

    def select_observed(self, observed: Observed) -> Selection:
        """One layer alone keeps its mean budget, as in a model of equal layers."""
        return self.select_layers([observed])[0]

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        batch, heads, tokens, dim = observed[0].keys.shape
        layers, before = len(observed), tokens - observed[0].queries.shape[2]
        keep = [
            torch.ones(batch, heads, tokens, dtype=torch.bool, device=layer.keys.device)
            for layer in observed
        ]
        shape = ModelShape(layers, observed[0].queries.shape[1], heads, dim)
        asked = int(self.counts(tokens, shape).sum())
        if asked == before * layers * heads:
            return [Selection(mask) for mask in keep]
        per_head, rest = divmod(asked, heads)
        limit = min(before, max(int(self.r_max * per_head / layers), -(-per_head // layers)))
        scored = [self._scores(layer, before, limit) for layer in observed]
        # layers may lie on different devices; only their best scores travel
        place = scored[0][1].device
        best = torch.stack([top.to(place) for _, top in scored])
        for b in range(batch):
            options = (self.interval, self.scaling, self.rounding)
            table = layer_budgets(best[:, b], per_head, limit, *options)
            table = table[:, None].expand(layers, heads).clone()
            if self.rounding == "largest_remainder" and rest:
                # what all heads of a layer cannot share goes to the first layer with room
                table[int((table[:, 0] < before).nonzero()[0]), :rest] += 1
            for index, (scores, _) in enumerate(scored):
                keep[index][b, :, :before] = top_mask(scores[b], table[index])
        return [Selection(mask) for mask in keep]

    def _scores(self, layer: Observed, before: int, limit: int) -> tuple[Tensor, Tensor]:
        """Scores [batch, kv_heads, before] that rank a KV head's tokens, and the ``limit`` best
        ones [batch, heads, limit] that decide the budgets."""
        group = layer.group
        raw = torch.stack(
            [
                kernels.window_scores(
                    layer.queries[:, member::group], layer.keys, layer.scaling, 0, layer.tokens,
                    scored=before, form=layer.form.of_member(member, group),
                )
                for member in range(group)
            ],
            dim=2,
        )  # fmt: skip
        scores = self._pooled(raw.mean(dim=2))
        if self.score_heads == "kv" or group == 1:
            return scores, scores.topk(limit).values
        return scores, self._pooled(raw.flatten(1, 2)).topk(limit).values

    def _pooled(self, scores: Tensor) -> Tensor:
        if self.kernel == 1:
            return scores
        pool = F.max_pool1d if self.pooling == "max" else F.avg_pool1d
        return pool(scores, self.kernel, stride=1, padding=self.kernel // 2)
