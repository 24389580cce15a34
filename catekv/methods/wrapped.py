"""Base of the methods that choose in a way of their own by the scores of another method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import create
from catekv.models.shape import ModelShape

WrappedType = TypeVar("WrappedType", bound="Wrapped")


def scorer_from(value: Any) -> Budgeted:
    """Read the option ``base``: a method, its name, or its name (also ``kind``) and options.

    Raises:
        UserError: no such method or option, or one that does not score tokens.
    """
    method = value
    if isinstance(value, str):
        method = create(value)
    elif isinstance(value, dict):
        given = dict(value)
        name = given.pop("name", None) or given.pop("kind", "snapkv")
        method = create(str(name), **given)
    if (
        not isinstance(method, Budgeted)
        or type(method).token_scores is Budgeted.token_scores
        or isinstance(method, Wrapped)
    ):
        raise UserError(
            f"base {getattr(method, 'name', method)!r} gives tokens no score of their own; use "
            "one that does, such as snapkv, tova, keydiff or knorm"
        )
    return method


@dataclass(frozen=True)
class Wrapped(Budgeted):
    """Options that all of them share.

    Args:
        budget: mean tokens kept per head besides what the base always keeps.
        total: entries of all layers and heads together, always-kept ones included, instead of
            ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        base: the method whose scores are used, with options as ``base.window=16``; its budget does
            not count, the tokens that it always keeps are kept.
    """

    edges_option: ClassVar[str] = "base"

    budgets: Any = method_option(None, convert=budgets_from)
    base: Any = method_option("snapkv", convert=scorer_from)

    @property
    def scorer(self) -> Budgeted:
        return scorer_from(self.base)

    @property
    def needs(self) -> Needs:
        return self.scorer.needs

    def edges(self) -> int:
        return self.scorer.edges()

    def for_heads(self: WrappedType, heads: slice) -> WrappedType:
        part = super().for_heads(heads)
        options: dict[str, Any] = {"base": self.scorer.for_heads(heads)}
        return replace(part, **options)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        # refuses where the base's heads compete for their tokens
        replace(self.scorer, budget=max(1, self.budget), total=None).budget_table(tokens, shape)
        return super().budget_table(tokens, shape)

    def chosen(self, scores: Tensor, counts: Tensor, observed: Observed) -> Tensor:
        """Which of the tokens before the edges are kept: bool [batch, kv_heads, entries].

        Args:
            scores: float32 [batch, kv_heads, entries], of the base.
            counts: int64 [kv_heads], what the budgets say.
        """
        return top_mask(scores, counts)

    def select_observed(self, observed: Observed) -> Selection:
        keys, counts = observed.keys, self.counts_of(observed)
        keep = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device)
        before = max(0, observed.tokens - self.edges())
        if int(counts.min()) < before:
            scores = self.scorer.token_scores(observed)
            keep[:, :, :before] = self.chosen(scores, counts, observed)
        return Selection(keep)
