"""CoKV (Sun et al., 2025): budgets by a head group's worth in a cooperative game."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from catekv.methods.allocator_files import read_scores
from catekv.methods.allocators import SLICE_SCALINGS, CoKVBudgets
from catekv.methods.example import Example, head_numbers
from catekv.methods.formulas.budgets import ROUNDINGS
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.window_scored import WindowScored


@register
@dataclass(frozen=True)
class CoKV(WindowScored):
    """Split all tokens by how far a group's sliced Shapley value lies above the worst ones.

    A group is a KV head with its query heads; its score comes from an offline game on a validation
    set. Each group keeps its share of tokens, selected as SnapKV does, and the window: the worst
    ``alpha`` groups keep the window only.

    Args:
        scores: path of a score file (npz or CSV) or numbers [layers, kv_heads], or [slices, layers,
            kv_heads], which are averaged.
        budget: mean tokens per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        window, kernel, pooling, order: as in SnapKV (the paper prints ``pool_then_mean``).
        alpha: which smallest score is the border, from 1; chosen on a validation set.
        rounding: ``floor`` (as released) or ``largest_remainder`` (under ``recommended``).
        redistribute: share tokens that do not fit into one group among the others (on under
            ``recommended``).
        slice_scaling: ``none``, or ``zscore`` before slices are averaged.
    """

    name: ClassVar[str] = "cokv"
    example = Example(
        lambda shape: {"budget": 10, "scores": head_numbers(shape), "window": 4, "kernel": 3}
    )
    paper: ClassVar[str] = "CoKV: Optimizing KV Cache Allocation via Cooperative Game, 2025"
    recommended: ClassVar[dict[str, Any]] = {
        "rounding": "largest_remainder",
        "redistribute": True,
    }

    scores: Any = method_option(
        None, convert=read_scores, needs="scores of the model's head groups; give scores=FILE"
    )
    window: int = 8
    alpha: int = method_option(1, least=1)
    rounding: str = method_option("floor", words=ROUNDINGS)
    redistribute: bool = False
    slice_scaling: str = method_option("none", words=SLICE_SCALINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.allocator  # noqa: B018 - refuses bad options

    @cached_property
    def allocator(self) -> CoKVBudgets:
        return CoKVBudgets(
            self.scores, self.rounding, self.redistribute, self.alpha, self.slice_scaling
        )
