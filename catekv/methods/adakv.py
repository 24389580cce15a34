"""AdaKV (Feng et al., 2024): heads of a layer compete for its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from catekv.errors import NeedsAllHeadsError
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Method
from catekv.methods.formulas.budgets import SAFEGUARDS, ada_counts
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.window_scored import WindowScored
from catekv.models.shape import ModelShape


@register
@dataclass(frozen=True)
class AdaKV(WindowScored):
    """Ada-SnapKV: the layer's best-scored tokens say how many every head keeps.

    The tokens that the heads of a layer have together are taken by score over all of them; a head's
    count is mixed with an even share, and the head keeps as many of its own best tokens, and the
    window. With ``budgets="pyramid"`` it is Ada-Pyramid.

    Args:
        budget: mean tokens per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``;
            implies ``exact``.
        window, kernel, pooling, order: as in SnapKV.
        budgets: what every head would get without the competition; default: evenly.
        floor: share of its budget that no head loses (0.2 in the paper, 0.5 in its code).
        safeguard: ``mixed`` (as published) or ``reserved``: every head's best tokens up to the
            share, window included, are taken before the others compete.
        exact: round so that a layer keeps exactly what its heads have (on under ``recommended``).
        normalise: weigh a head's scores by the share of its best ``budget`` in their sum.
    """

    name: ClassVar[str] = "adakv"
    paper: ClassVar[str] = (
        "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM "
        "Inference, 2024"
    )
    recommended: ClassVar[dict[str, Any]] = {"exact": True}

    budgets: Any = method_option(None, convert=budgets_from)
    floor: float = method_option(0.2, least=0, most=1)
    safeguard: str = method_option("mixed", words=SAFEGUARDS)
    exact: bool = False
    normalise: bool = False

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = super().budget_table(tokens, shape)
        if bool((table < tokens).any()):
            return Method.budget_table(self, tokens, shape)
        return table

    def for_heads(self, heads: slice) -> AdaKV:
        raise NeedsAllHeadsError(
            "adakv compares all heads of a layer, which no process of a tensor-parallel group "
            "has; use one process"
        )

    def split(self, scores: Tensor, counts: Tensor) -> Tensor:
        return ada_counts(
            scores,
            counts,
            self.floor,
            safeguard=self.safeguard,
            window=self.window,
            exact=self.exact or self.total is not None,
            normalise=self.normalise,
        )
