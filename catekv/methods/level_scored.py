"""Base of the methods whose scores compare the entries of a head, of a layer or of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.base import Method, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.models.shape import ModelShape

LevelScoredType = TypeVar("LevelScoredType", bound="LevelScored")

#: Among which entries the best are chosen.
LEVELS = ("model", "layer", "head")


@dataclass(frozen=True)
class LevelScored(Budgeted):
    """Keep the best entries; those with an infinite score are certain.

    Args:
        budget: mean entries kept per head, certain ones included.
        total: entries of all layers and heads together, instead of ``budget``.
        level: what the entries that compete belong to: the ``model``, a ``layer`` or a ``head``.
    """

    #: how messages call what is certain, and the options that say how much it is
    certain: ClassVar[str] = ""
    certain_options: ClassVar[str] = ""

    level: str = method_option("model", words=LEVELS)

    @property
    def exact_counts(self) -> bool:
        """Whether exactly the budget is kept, whatever the scores are."""
        return True

    def layer_scores(self, observed: Observed) -> Tensor:
        """Of every entry, float32 [batch, kv_heads, tokens]; infinite for what is always kept."""
        raise NotImplementedError

    def best(self, scores: Tensor, places: Tensor) -> Tensor:
        """Which of scores [..., entries] are among the ``places`` [...] best."""
        return top_mask(scores, places)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = super().budget_table(tokens, shape)
        fixed = self.level == "head" and self.exact_counts
        return table if fixed or bool((table >= tokens).all()) else Method.budget_table(
            self, tokens, shape
        )  # fmt: skip

    def for_heads(self: LevelScoredType, heads: slice) -> LevelScoredType:
        if self.level == "head":
            return super().for_heads(heads)
        raise NeedsAllHeadsError(
            f"{self.name} compares the heads of a {self.level}, which no process of a "
            "tensor-parallel group has; use level=head"
        )

    def select_observed(self, observed: Observed) -> Selection:
        return self.select_layers([observed])[0]

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        # layers may lie on different devices
        device = observed[0].keys.device
        scores = torch.stack([self.layer_scores(layer).to(device) for layer in observed], dim=1)
        counts = self.counts(observed[0].tokens, observed[0].shape)
        kept = self.chosen(scores, counts[[layer.layer for layer in observed]])
        return [
            Selection(keep.to(layer.keys.device))
            for keep, layer in zip(kept.unbind(dim=1), observed, strict=True)
        ]

    def chosen(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Which entries of scores [batch, layers, kv_heads, tokens] are kept, where heads have
        ``counts`` int64 [layers, kv_heads] entries to share with those that they compete with."""
        if bool((counts >= scores.shape[-1]).all()):
            return torch.ones_like(scores, dtype=torch.bool)
        first = {"model": 1, "layer": 2, "head": 3}[self.level]
        rows, places = scores.flatten(first), counts
        for _ in range(3 - first):
            places = places.sum(dim=-1)
        certain = rows.isinf().sum(dim=-1)
        if bool((certain.cpu() > places).any()):
            raise UserError(
                f"{self.name}: {int(places.min())} entries do not hold the {int(certain.max())} of "
                f"the {self.certain} tokens that are always kept; raise the budget or lower "
                f"{self.certain_options}"
            )
        return self.best(rows, places).view(scores.shape)
