"""Key norms (Devoto et al., 2024): the tokens whose keys are shortest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.methods.base import Observed
from catekv.methods.entry_scored import EntryScored
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.options import method_option
from catekv.methods.registry import register


def key_norms(keys: Tensor) -> Tensor:
    """Euclidean norms of keys [batch, kv_heads, tokens, head_dim]: float32 [..., tokens].

    One head is converted at a time, which bounds the memory of long prompts.
    """
    rows = [torch.linalg.vector_norm(row.float(), dim=-1) for row in keys.flatten(0, 1)]
    return torch.stack(rows).view(keys.shape[:3])


@register
@dataclass(frozen=True)
class Knorm(EntryScored):
    """Keep ``budget`` tokens per head: those with the smallest key norm. No query is looked at.

    Args:
        budget: mean tokens kept per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        window: last tokens that are always kept (none as published).
    """

    name: ClassVar[str] = "knorm"
    example = Example({"budget": 8, "window": 4})
    memory_formula = MemoryFormula("budget + window")
    paper: ClassVar[str] = (
        "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, 2024"
    )
    edges_option: ClassVar[str] = "window"

    window: int = method_option(0, least=0)

    def entry_scores(self, observed: Observed) -> Tensor:
        return -key_norms(observed.keys)
