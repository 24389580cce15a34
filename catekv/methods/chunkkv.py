"""ChunkKV (Liu et al., 2025): neighbouring tokens stay or leave together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from catekv.errors import NeedsAllHeadsError
from catekv.methods.base import Method, Observed
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.wrapped import Wrapped
from catekv.models.shape import ModelShape


def chunk_means(scores: Tensor, chunk: int) -> Tensor:
    """Mean of every ``chunk`` scores [..., entries], a short last one by its own: [..., chunks]."""
    # the short chunk would otherwise be averaged over its padding too
    return F.avg_pool1d(scores, chunk, ceil_mode=True, count_include_pad=False)


@register
@dataclass(frozen=True)
class ChunkKV(Wrapped):
    """Keep whole chunks of tokens, the same in every head: those that score best on average.

    The scores of the base are summed over the heads of a layer and averaged per chunk. Of all
    chunks the share is kept that the budget is of the tokens, at least one; if the short last chunk
    is among them that is fewer tokens. Budgets that differ between heads take as many chunks from
    the one order.

    Args:
        chunk: tokens of a chunk (10 in the paper).
        exact: keep exactly the budget: the last chunk taken is kept in part (on under
            ``recommended``, and with a total).
    """

    name: ClassVar[str] = "chunkkv"
    example = Example({"budget": 10, "chunk": 4, "base": {"name": "snapkv", "window": 4}})
    memory_formula = MemoryFormula(
        "budget + edges", terms=lambda method, tokens, shape: {"edges": method.edges()}
    )
    paper: ClassVar[str] = (
        "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM "
        "Inference, 2025"
    )
    recommended: ClassVar[dict[str, Any]] = {"exact": True}

    chunk: int = method_option(10, least=1)
    exact: bool = False

    def for_heads(self, heads: slice) -> ChunkKV:
        raise NeedsAllHeadsError(
            "chunkkv sums over all heads of a layer, which no process of a tensor-parallel group "
            "has; use one process"
        )

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = super().budget_table(tokens, shape)
        if not self.exact and self.total is None and bool((table < tokens).any()):
            return Method.budget_table(self, tokens, shape)
        return table

    def chosen(self, scores: Tensor, counts: Tensor, observed: Observed) -> Tensor:
        entries = scores.shape[-1]
        means = chunk_means(scores.sum(dim=1, keepdim=True), self.chunk).expand(
            -1, scores.shape[1], -1
        )
        if self.exact or self.total is not None:
            means = means.repeat_interleave(self.chunk, dim=-1)[..., :entries]
            return top_mask(means, counts)
        chunks = top_mask(means, (counts * means.shape[-1] // entries).clamp(min=1))
        return chunks.repeat_interleave(self.chunk, dim=-1)[..., :entries]
