"""SnapKV (Li et al., 2024): the tokens that the last prompt queries look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from catekv.errors import UserError
from catekv.methods.allocators import Table, budgets_from
from catekv.methods.options import assign, method_option
from catekv.methods.registry import register
from catekv.methods.window_scored import WindowScored


@register
@dataclass(frozen=True)
class SnapKV(WindowScored):
    """Keep ``budget`` tokens per head outside the window, and the window.

    A token's score is its attention from the window queries (causal softmax over all keys in fp32,
    mean over the window and over the query group), pooled over its neighbours. Ties go to the lower
    position. A prompt of at most ``budget + window`` tokens is kept whole.

    Args:
        budget: tokens kept besides the window; an int, or one per KV head.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        window: last prompt queries that score the others; always kept (16 to 64 in the paper).
        kernel: width of the pooling, odd (5 or 7 in the paper); 1 = none.
        pooling: ``max`` or ``average`` (counts the zero padding at the edges).
        order: ``mean_then_pool`` (as released), or ``pool_then_mean``: every query of every head is
            pooled before they are averaged.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "SnapKV: LLM Knows What You are Looking for Before Generation, 2024"

    budget: int | Sequence[int] = 1024  # type: ignore[assignment]
    budgets: Any = method_option(None, convert=budgets_from)

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int | float):
            if self.budgets is not None:
                raise UserError("snapkv: give a budget per head or budgets, not both")
            row = tuple(int(value) for value in self.budget)
            assign(self, budgets=Table([row]), budget=round(sum(row) / len(row)))
        super().__post_init__()
