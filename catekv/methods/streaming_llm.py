"""StreamingLLM (Xiao et al., 2024): the first tokens and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import ModelShape, Observed, Selection, register
from catekv.methods.budgeted import Budgeted


def first_and_last(tokens: int, first: int, last: Tensor) -> Tensor:
    """Mark the first ``first`` and the last ``last`` positions: bool [*last.shape, tokens]."""
    position = torch.arange(tokens, device=last.device)
    return (position < first) | (position >= tokens - last[..., None])


@dataclass(frozen=True)
class FirstAndLast(Budgeted):
    """Base of the methods that look at no content: first tokens and recent ones of every head."""

    def select_observed(self, observed: Observed) -> Selection:
        batch, heads, tokens, dim = observed.keys.shape
        shape = ModelShape(observed.num_layers, observed.queries.shape[1], heads, dim)
        last = self.counts(tokens, shape)[observed.layer].to(observed.keys.device)
        keep = first_and_last(tokens, self.edges(), last)
        return Selection(keep.expand(batch, heads, tokens).clone())


@register
@dataclass(frozen=True)
class StreamingLLM(FirstAndLast):
    """Keep the first ``sinks`` and the last ``budget - sinks`` prompt tokens of every head.

    Keys keep their original positions. Tokens generated later are appended and stay; the paper's
    system would drop the oldest recent token instead. ``sinks=0`` is a plain sliding window, which
    breaks fluency. The CateKV paper runs it with 128 sinks.

    Args:
        budget: mean tokens kept per head, sinks included.
        total: entries of all layers and heads together, sinks included, instead of ``budget``.
        sinks: first tokens always kept.
        budgets: how the recent tokens are split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
    """

    name: ClassVar[str] = "streaming_llm"
    paper: ClassVar[str] = "Efficient Streaming Language Models with Attention Sinks, ICLR 2024"

    edges_option: ClassVar[str] = "sinks"
    edges_in_budget: ClassVar[bool] = True

    sinks: int = 4
    budgets: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0 or self.budget < max(1, self.sinks):
            raise UserError(
                f"streaming_llm: budget {self.budget} must be at least 1 and at least sinks "
                f"{self.sinks}, and sinks at least 0"
            )
