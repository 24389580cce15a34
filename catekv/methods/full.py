"""Full attention: keep everything. The reference every other method is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.methods.base import Method, Observed, Selection
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.registry import register
from catekv.models.shape import ModelShape


class KeepsEverything(Method):
    """Every token of every head is kept."""

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.full((shape.layers, shape.kv_heads), tokens)

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        return Selection(torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device))


@register
@dataclass(frozen=True)
class Full(KeepsEverything):
    """Keep every token of every head."""

    name: ClassVar[str] = "full"
    example = Example({}, {}, exact=False)
    memory_formula = MemoryFormula("T")
    effect: ClassVar[str] = "keeps"
