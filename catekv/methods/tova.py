"""TOVA (Oren et al., 2024): the tokens that the newest query of all heads looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from catekv import kernels
from catekv.errors import NeedsAllHeadsError
from catekv.methods.base import Needs, Observed
from catekv.methods.entry_scored import EntryScored
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.registry import register


@register
@dataclass(frozen=True)
class Tova(EntryScored):
    """Keep the ``budget`` tokens of a layer that its last query looks at, the same in every head.

    A token's score is the mean over all query heads of the layer of the last query's attention
    (softmax over all keys in fp32). Budgets that differ between the heads of a layer take as many
    from the one order.

    Args:
        budget: mean tokens kept per head.
        total: entries of all layers and heads together, instead of ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        protect_last: the last token is certain, among the budget (as published it may leave).
    """

    name: ClassVar[str] = "tova"
    example = Example({"budget": 12})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = "Transformers are Multi-State RNNs, 2024"
    edges_option: ClassVar[str] = "protect_last"
    edges_in_budget: ClassVar[bool] = True
    compares_heads: ClassVar[bool] = True

    protect_last: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(window=1)

    def for_heads(self, heads: slice) -> Tova:
        raise NeedsAllHeadsError(
            "tova averages over all heads of a layer, which no process of a tensor-parallel group "
            "has; use one process"
        )

    def entry_scores(self, observed: Observed) -> Tensor:
        keys = observed.keys
        attention = kernels.window_scores(
            observed.queries, keys, observed.scaling, 0, observed.tokens, form=observed.form
        )
        return attention.mean(dim=1, keepdim=True).expand(keys.shape[:3])
