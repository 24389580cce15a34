"""StreamingLLM (Xiao et al., 2024): the first tokens and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Method, ModelShape, Observed, Selection, register


@register
@dataclass(frozen=True)
class StreamingLLM(Method):
    """Keep the first ``sinks`` and the last ``budget - sinks`` prompt tokens of every head.

    Keys keep their original positions. Tokens generated later are appended and stay; the paper's
    system would drop the oldest recent token instead. ``sinks=0`` is a plain sliding window, which
    breaks fluency. The CateKV paper runs it with 128 sinks.

    Args:
        budget: tokens kept per head, sinks included.
        sinks: first tokens always kept.
    """

    name: ClassVar[str] = "streaming_llm"
    paper: ClassVar[str] = "Efficient Streaming Language Models with Attention Sinks, ICLR 2024"

    budget: int = 1024
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.budget < max(1, self.sinks):
            raise UserError(
                f"streaming_llm: budget {self.budget} must be at least 1 and at least sinks "
                f"{self.sinks}, and sinks at least 0"
            )

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.full((shape.layers, shape.kv_heads), min(tokens, self.budget))

    def select_observed(self, observed: Observed) -> Selection:
        batch, heads, tokens, _ = observed.keys.shape
        position = torch.arange(tokens, device=observed.keys.device)
        keep = (position < self.sinks) | (position >= tokens - (self.budget - self.sinks))
        return Selection(keep.expand(batch, heads, tokens).clone())
