"""Base of the methods that keep what the last prompt queries look at: SnapKV's selection with any
budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import ORDERS, POOLINGS, top_mask, window_token_scores
from catekv.methods.options import method_option


@dataclass(frozen=True)
class WindowScored(Budgeted):
    """Keep the last ``window`` tokens and, per head, those that score best before them.

    A token's score is its attention from the window queries (causal softmax over all keys in fp32,
    mean over the window and over the query group), pooled over its neighbours. Ties go to the lower
    position. What a head cannot use because the prompt is too short is kept whole.

    Args:
        window: last prompt queries that score the others; always kept.
        kernel: width of the pooling, odd; 1 = none.
        pooling: ``max`` or ``average`` (counts the zero padding at the edges).
        order: ``mean_then_pool`` (as released), or ``pool_then_mean``: every query of every head
            is pooled before they are averaged.
    """

    edges_option: ClassVar[str] = "window"
    example = Example({"budget": 10, "window": 4, "kernel": 3})
    memory_formula = MemoryFormula("budget + window")

    window: int = method_option(32, least=1)
    kernel: int = method_option(7, least=1, odd=True)
    pooling: str = method_option("max", words=POOLINGS)
    order: str = method_option("mean_then_pool", words=ORDERS)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def token_scores(self, observed: Observed) -> Tensor:
        return window_token_scores(
            observed.queries,
            observed.keys,
            observed.scaling,
            self.kernel,
            self.pooling,
            self.order,
            observed.form,
        )

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        batch, heads, tokens, _ = keys.shape
        counts = self.counts_of(observed)
        keep = torch.ones(batch, heads, tokens, dtype=torch.bool, device=keys.device)
        before = tokens - observed.queries.shape[2]
        if int(counts.min()) < before:
            scores = self.token_scores(observed)
            keep[:, :, :before] = top_mask(scores, self.split(scores, counts))
        return Selection(keep)
