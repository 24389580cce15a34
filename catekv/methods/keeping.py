"""Base of the methods that keep every token and differ in what they read of them."""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.methods.base import Method, Observed, Selection
from catekv.models.shape import ModelShape


class KeepsEverything(Method):
    """Every token of every head is kept."""

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.full((shape.layers, shape.kv_heads), tokens)

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        return Selection(torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device))
