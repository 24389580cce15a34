"""Expected Attention (Devoto et al., 2025): the attention of queries that are still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.base import Method, Needs, Observed
from catekv.methods.entry_scored import EntryScored
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.blocks import block_floats
from catekv.methods.formulas.budgets import ada_counts
from catekv.methods.formulas.query_moments import FIRST
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape


@register
@dataclass(frozen=True)
class ExpectedAttention(EntryScored):
    """Keep ``budget`` tokens per head: those that future queries can be expected to look at.

    The prompt's queries before their rotation are taken as a sample of a normal distribution, which
    is turned to the mean rotation of the next ``future`` positions. A token's score is the
    exponential's expectation over such queries, softmax over all tokens but the sinks, mean over
    the query group, times the norm of the token's value. Queries and keys of the sinks count
    nowhere; the sinks are certain.

    Args:
        budget: mean tokens kept per head, sinks included.
        total: entries of all layers and heads together, instead of ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        sinks: first tokens, always kept.
        future: positions after the prompt over which the rotation is averaged.
        covariance: count how queries scatter; False: their mean alone.
        value_norm: multiply by the norm of the value.
        epsilon: added before that (0.02 in the authors' benchmarks).
        floor: the heads of a layer compete for its tokens as in AdaKV, where each head's best are
            taken first, up to this share of its budget (0.2 in the authors' benchmarks, at least
            one token unless 0); None: every head keeps its budget.
    """

    name: ClassVar[str] = "expected_attention"
    example = Example({"budget": 12, "sinks": 2, "future": 8})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = (
        "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries "
        "Distribution, 2025"
    )

    sinks: int = method_option(4, least=0, most=FIRST)
    future: int = method_option(512, least=1)
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = method_option(0.0, least=0)
    floor: float | None = method_option(None, least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_more_sinks_than_budget(self.sinks)

    @property
    def needs(self) -> Needs:
        return Needs(query_moments=True, rotation=True)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = super().budget_table(tokens, shape)
        if self.floor is not None and bool((table < tokens).any()):
            return Method.budget_table(self, tokens, shape)
        return table

    def for_heads(self, heads: slice) -> ExpectedAttention:
        if self.floor is None:
            return super().for_heads(heads)
        raise NeedsAllHeadsError(
            f"{self.name}: with floor the heads of a layer compete, which no process of a "
            "tensor-parallel group has all of; leave floor out or use one process"
        )

    def split(self, scores: Tensor, counts: Tensor) -> Tensor:
        if self.floor is None:
            return counts
        return ada_counts(scores, counts, self.floor, safeguard="reserved")

    def future_queries(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """Mean [batch, query_heads, head_dim] and covariance [..., head_dim, head_dim] of the
        queries after the prompt, in float32."""
        if observed.query_moments is None:
            raise UserError(
                f"{self.name} needs the moments of all queries; pass Observed(query_moments=...)"
            )
        mean, covariance = observed.query_moments.without_first(self.sinks)
        positions = torch.arange(self.future, device=mean.device) + observed.tokens
        turn = observed.required_rotation(self.name).mean_matrix(positions, mean.shape[-1])
        return mean @ turn.T, turn @ covariance @ turn.T

    def entry_scores(self, observed: Observed) -> Tensor:
        scaling = observed.plain_scaling(self.name)
        mean, covariance = self.future_queries(observed)
        keys, values = (part[:, :, self.sinks :] for part in (observed.keys, observed.values))
        batch, heads, tokens, dim = keys.shape
        scores = keys.new_full(observed.keys.shape[:3], torch.inf, dtype=torch.float32)
        if not tokens:
            return scores
        # scaled once, so that logits are plain products
        mean = scaling * mean.unflatten(1, (heads, -1))
        covariance = scaling**2 / 2 * covariance.unflatten(1, (heads, -1))
        logits = mean.new_empty(batch, heads, observed.group, tokens)
        block = max(1, block_floats(keys.device) // (observed.group * dim))
        for start in range(0, tokens, block):
            columns = slice(start, start + block)
            for b in range(batch):
                for head in range(heads):
                    row = keys[b, head, columns].float()
                    found = mean[b, head] @ row.T
                    if self.covariance:
                        found += (row @ covariance[b, head]).mul_(row).sum(dim=-1)
                    logits[b, head, :, columns] = found
        found = logits.softmax(dim=-1).mean(dim=2) + self.epsilon
        if self.value_norm:
            found *= values.norm(dim=-1, dtype=torch.float32)
        scores[:, :, self.sinks :] = found
        return scores
