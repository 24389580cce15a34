"""SnapKV (Li et al., 2024): the tokens that the last prompt queries look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Method, ModelShape, Needs, Observed, Selection, register
from catekv.methods.scoring import POOLINGS, top_mask, window_token_scores


@register
@dataclass(frozen=True)
class SnapKV(Method):
    """Keep ``budget`` tokens per head outside the window, and the window.

    A token's score is its attention from the window queries (causal softmax over all keys in fp32,
    mean over the window and over the query group), pooled over its neighbours. Ties go to the lower
    position. A prompt of at most ``budget + window`` tokens is kept whole.

    Args:
        budget: tokens kept besides the window; an int, or one per KV head.
        window: last prompt queries that score the others; always kept (16 to 64 in the paper).
        kernel: width of the pooling, odd (5 or 7 in the paper); 1 = none.
        pooling: ``max`` or ``average``.
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "SnapKV: LLM Knows What You are Looking for Before Generation, 2024"

    budget: int | Sequence[int] = 1024
    window: int = 32
    kernel: int = 7
    pooling: str = "max"

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int):
            object.__setattr__(self, "budget", tuple(int(value) for value in self.budget))
        if min(self._budgets(1)) < 0:
            raise UserError(f"snapkv: budget {self.budget} is negative; use 0 or more tokens")
        if self.window < 1:
            raise UserError(f"snapkv: window {self.window} must be at least 1 token")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"snapkv: kernel {self.kernel} must be odd and at least 1")
        if self.pooling not in POOLINGS:
            raise UserError(
                f"snapkv: unknown pooling {self.pooling!r}; use {' or '.join(POOLINGS)}"
            )

    def _budgets(self, kv_heads: int) -> tuple[int, ...]:
        if isinstance(self.budget, int):
            return (self.budget,) * kv_heads
        return tuple(self.budget)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def validate(self, shape: ModelShape) -> None:
        given = len(self._budgets(shape.kv_heads))
        if given != shape.kv_heads:
            raise UserError(
                f"snapkv: {given} budgets for {shape.kv_heads} KV heads; pass one per KV head"
            )

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        self.validate(shape)
        kept = [min(tokens, budget + self.window) for budget in self._budgets(shape.kv_heads)]
        return torch.tensor([kept] * shape.layers)

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        batch, heads, tokens, dim = keys.shape
        self.validate(ModelShape(observed.num_layers, observed.queries.shape[1], heads, dim))
        keep = torch.ones(batch, heads, tokens, dtype=torch.bool, device=keys.device)
        budgets = self._budgets(heads)
        before = tokens - observed.queries.shape[2]
        if min(budgets) < before:
            scores = window_token_scores(
                observed.queries, keys, observed.scaling, self.kernel, self.pooling
            )
            counts = torch.tensor(budgets, device=keys.device).expand(batch, heads)
            keep[:, :, :before] = top_mask(scores, counts)
        return Selection(keep)
