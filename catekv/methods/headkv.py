"""HeadKV-R2 (Fu et al., 2025): budgets by how well a head retrieves and reasons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from catekv.methods.allocator_files import read_scores
from catekv.methods.allocators import HeadKVBudgets
from catekv.methods.example import Example, head_numbers
from catekv.methods.formulas.budgets import ROUNDINGS
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.window_scored import WindowScored


@register
@dataclass(frozen=True)
class HeadKV(WindowScored):
    """Pool a part of every head's budget, split the pool by scores, and select as SnapKV does.

    Scores come from an offline probe of the model. The pool takes ``budget // beta`` of every head:
    a larger beta gives a smaller pool and more uniform budgets.

    Args:
        scores: path of a score file (HeadKV's JSON, CSV or npz) or numbers [layers, heads]; those
            of query heads are averaged over the group of a KV head.
        budget: mean tokens per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        window, kernel, pooling, order: as in SnapKV.
        beta: at least 1 (1.005 to 10 in the paper).
        rounding: ``floor`` (as released) or ``largest_remainder`` (under ``recommended``).
        redistribute: give tokens that do not fit into one head to the others (on under
            ``recommended``).
    """

    name: ClassVar[str] = "headkv"
    example = Example(
        lambda shape: {"budget": 10, "scores": head_numbers(shape), "window": 4, "kernel": 3}
    )
    paper: ClassVar[str] = (
        "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval "
        "and Reasoning, ICLR 2025"
    )
    recommended: ClassVar[dict[str, Any]] = {
        "rounding": "largest_remainder",
        "redistribute": True,
    }

    scores: Any = method_option(
        None, convert=read_scores, needs="scores of the model's heads; give scores=FILE"
    )
    window: int = 8
    beta: float = method_option(1.01, least=1)
    rounding: str = method_option("floor", words=ROUNDINGS)
    redistribute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.allocator  # noqa: B018 - refuses bad options

    @cached_property
    def allocator(self) -> HeadKVBudgets:
        return HeadKVBudgets(self.scores, self.rounding, self.redistribute, self.beta)
