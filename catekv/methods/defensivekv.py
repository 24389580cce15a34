"""DefensiveKV (Feng et al., 2025): tokens by the most that any window query made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.errors import NeedsAllHeadsError
from catekv.kernels.window_scores import window_attention
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.output_norms import output_norms
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

#: ``code``: of the last prompt tokens before the window; ``window``: of the window itself.
BIASES = ("code", "window")
#: Mean attention of a head that the tokens which are certain by it and the bias have together.
_CERTAIN = 0.9
#: Bytes of one block of probabilities, of which pooling makes a few copies.
_BLOCK = 32 * 2**20


def largest_pooled(attention: Tensor, kernel: int) -> Tensor:
    """Attention [..., window, entries] averaged over neighbours (zeros beyond the edges count),
    every query scaled to what it gave before; the largest of all queries: [..., entries]."""
    pooled = F.avg_pool1d(attention.flatten(0, -3), kernel, stride=1, padding=kernel // 2)
    pooled = pooled.view(attention.shape)
    given = attention.sum(dim=-1, keepdim=True)
    pooled *= given / pooled.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(pooled.dtype).tiny)
    return pooled.amax(dim=-2)


def defended(worst: Tensor, norms: Tensor) -> Tensor:
    """Scores from the largest attention and the output norms, both [..., heads, entries]: at least
    a head's mean, times the head's part of the norms at that token."""
    together = norms.sum(dim=-2, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
    return worst.maximum(worst.mean(dim=-1, keepdim=True)) * (norms / together)


def certain_counts(mean: Tensor, bias: Tensor, most: int) -> Tensor:
    """How many best tokens of mean attention [batch, heads, entries] are certain, at most ``most``:
    as many as stay below the share of 0.9 with what the ``bias`` [batch] has of it."""
    shares = mean / mean.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
    gathered = shares.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (gathered < _CERTAIN - bias[:, None, None]).sum(dim=-1).clamp(max=most)


@register
@dataclass(frozen=True)
class DefensiveKV(Budgeted):
    """Keep the last ``window`` tokens and what some window query may want most.

    A token's score is its largest attention from any window query of the group, at least the mean
    of its head, times the head's part of the output norms (as in criticalkv) at that token. The
    tokens with most mean attention are certain. Heads compete for the tokens of their layer,
    without a least number; with ``across_layers`` all heads of the model do (Layer-DefensiveKV,
    which holds all layers dense until the prompt has been read).

    Args:
        budget: mean tokens kept per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        budgets: what heads would get without the competition, of which only the sum counts: of
            their layer, or of the model; default: evenly (:mod:`catekv.methods.allocators`).
        window: last prompt queries that score the others; always kept.
        kernel: width of the average pooling, odd; 1 = none.
        across_layers: heads of all layers compete.
        bias: attention counted as certain before any token: of ``code`` (as published: the last
            ``window`` tokens before the window) or of the ``window`` (under ``recommended``).
    """

    name: ClassVar[str] = "defensivekv"
    example = Example({"budget": 10, "window": 4, "kernel": 3})
    memory_formula = MemoryFormula("budget + window")
    paper: ClassVar[str] = "Taming the Fragility of KV Cache Eviction in LLM Inference, 2025"
    edges_option: ClassVar[str] = "window"
    recommended: ClassVar[dict[str, Any]] = {"bias": "window"}

    budgets: Any = method_option(None, convert=budgets_from)
    window: int = method_option(32, least=1)
    kernel: int = method_option(5, least=1, odd=True)
    across_layers: bool = False
    bias: str = method_option("code", words=BIASES)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window, all_layers=self.across_layers, output_projection=True)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = super().budget_table(tokens, shape)
        return Method.budget_table(self, tokens, shape) if bool((table < tokens).any()) else table

    def for_heads(self, heads: slice) -> DefensiveKV:
        raise NeedsAllHeadsError(
            "defensivekv compares all heads of a layer, which no process of a tensor-parallel "
            "group has; use one process"
        )

    def select_observed(self, observed: Observed) -> Selection:
        return self._chosen([observed], int(self.counts_of(observed).sum()))[0]

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        return self._chosen(observed, sum(int(self.counts_of(layer).sum()) for layer in observed))

    def _chosen(self, layers: Sequence[Observed], places: int) -> list[Selection]:
        """What stays of layers whose heads share ``places`` tokens before the window."""
        keys = layers[0].keys
        batch, heads, tokens = keys.shape[:3]
        edges = layers[0].queries.shape[2]
        before, rows = tokens - edges, len(layers) * heads
        kept = torch.ones(batch, rows, tokens, dtype=torch.bool, device=keys.device)
        if places < before * rows:
            # as published the window is subtracted twice
            most = before * (places + edges * rows) // (tokens * rows) - edges
            # layers may lie on different devices
            scored = [self.scores(layer, max(0, most)).to(keys.device) for layer in layers]
            flat = torch.cat(scored, dim=1).flatten(1)
            chosen = top_mask(flat, torch.tensor(places))
            kept[:, :, :before] = chosen.view(batch, rows, before)
        parts = kept.split(heads, dim=1)
        return [Selection(k.to(one.keys.device)) for k, one in zip(parts, layers, strict=True)]

    def scores(self, observed: Observed, most: int) -> Tensor:
        """Scores of the tokens before the window [batch, kv_heads, entries]; infinite where one of
        at most ``most`` of its head is certain."""
        window, (batch, heads, tokens) = observed.queries.shape[2], observed.keys.shape[:3]
        before = tokens - window
        worst = torch.zeros(batch * heads, before, device=observed.keys.device)
        mean = torch.zeros_like(worst)
        for member in range(observed.group):
            for rows, attention in window_attention(
                observed.queries[:, member :: observed.group], observed.keys, observed.scaling,
                block_bytes=_BLOCK, form=observed.form.of_member(member, observed.group),
            ):  # fmt: skip
                attention = attention[..., :before]
                worst[rows] = worst[rows].maximum(largest_pooled(attention, self.kernel))
                mean[rows] += attention.mean(dim=-2) / observed.group
        worst, mean = worst.view(batch, heads, before), mean.view(batch, heads, before)
        norms = output_norms(observed.values[:, :, :before], observed.output_projection)
        counts = certain_counts(mean, self.bias_of(mean, window), most)
        return defended(worst, norms).masked_fill(top_mask(mean, counts), torch.inf)

    def bias_of(self, mean: Tensor, window: int) -> Tensor:
        """Share of attention that counts as certain, from [batch, heads, entries]: [batch]."""
        newest = mean[..., -window:].sum(dim=-1)
        return (newest if self.bias == "code" else 1 - mean.sum(dim=-1)).mean(dim=-1)
