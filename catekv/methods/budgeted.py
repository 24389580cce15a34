"""Base of the methods whose heads keep some edges and a number of further tokens.

``budget`` says how many, ``budgets`` how they are split over layers and heads
(:mod:`catekv.methods.allocators`), ``total`` replaces the mean by an exact sum: the one place where
these options are read for all such methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.allocators import Budgets, Demand, budgets_from
from catekv.methods.base import Method, Observed
from catekv.methods.options import method_option
from catekv.models.shape import ModelShape

#: Length of a prompt in which every budget fits.
ENDLESS = 1 << 40

BudgetedType = TypeVar("BudgetedType", bound="Budgeted")


@dataclass(frozen=True)
class Budgeted(Method):
    """Options that all of them share.

    Args:
        budget: mean number of tokens that a head keeps.
        total: entries that all layers and heads together keep, always-kept ones included; exact,
            instead of ``budget``.
    """

    #: the option that says how many tokens are always kept, and whether the budget holds them
    edges_option: ClassVar[str] = ""
    edges_in_budget: ClassVar[bool] = False
    #: whether a token's score is made of what all heads of a layer think of it
    compares_heads: ClassVar[bool] = False

    budget: int = method_option(1024, least=0)
    total: int | None = method_option(None, least=0)

    @cached_property
    def allocator(self) -> Budgets:
        """How the budget is split."""
        return budgets_from(getattr(self, "budgets", None))

    def edges(self) -> int:
        """Tokens that every head keeps always."""
        return int(getattr(self, self.edges_option)) if self.edges_option else 0

    def refuse_more_sinks_than_budget(self, sinks: int) -> None:
        """``UserError`` if the budget does not hold the first tokens that stay; a total says so
        once the prompt is known."""
        if self.total is None and self.budget < sinks:
            raise UserError(
                f"{self.name}: budget {self.budget} does not hold the {sinks} sinks that are "
                "always kept; raise the budget or lower sinks"
            )

    def validate(self, shape: ModelShape) -> None:
        self.allocator.validate(shape)

    def counts(self, tokens: int, shape: ModelShape) -> Tensor:
        """Tokens kept outside the edges: int64 [layers, kv_heads].

        Raises:
            UserError: budgets of another model's shape, or a total below the edges.
        """
        edges = min(self.edges(), tokens)
        mean = self.budget - (self.edges() if self.edges_in_budget else 0)
        demand = Demand(mean, tokens, edges, shape)
        if self.total is None:
            return self.allocator.table(demand)
        if self.total >= tokens * demand.heads:
            return torch.full((shape.layers, shape.kv_heads), demand.room)
        if self.total < edges * demand.heads:
            raise UserError(
                f"{self.name}: a total of {self.total} tokens does not hold the {edges} that each "
                f"of {demand.heads} heads always keeps ({edges * demand.heads}); raise the total "
                f"or lower {self.edges_option}"
            )
        return self.allocator.exact_table(demand, self.total - edges * demand.heads)

    def counts_of(self, observed: Observed) -> Tensor:
        """:meth:`counts` for one layer of a prompt: int64 [kv_heads], on its device."""
        return self.counts(observed.tokens, observed.shape)[observed.layer].to(observed.keys.device)

    def token_scores(self, observed: Observed) -> Tensor:
        """What the method thinks of every token before the edges, for methods that choose by the
        scores of others: float32 [batch, kv_heads, tokens - edges], larger is better."""
        raise NotImplementedError  # what reads it refuses methods without

    def split(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Tokens of every head before the edges, after the scores were seen.

        Args:
            scores: [batch, kv_heads, entries]; counts: int64 [kv_heads], what the budgets say.

        Returns:
            int64 [batch, kv_heads] or broadcastable to it.
        """
        return counts

    def given_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return self.counts(tokens, shape) + min(self.edges(), tokens)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return self.given_table(tokens, shape)

    def row_capacities(self, observed: Observed, held: Sequence[int]) -> list[int | None]:
        """Entries that each row of a layer may hold while decoding, in (batch, head) order: what it
        would keep of an endless prompt, and never less than it ``held`` after prefill."""
        table = self.budget_table(ENDLESS, observed.shape)[observed.layer].tolist()
        table *= observed.keys.shape[0]
        return [max(*pair) for pair in zip(table, held, strict=True)]

    def with_total(self: BudgetedType, total: int, tokens: int, shape: ModelShape) -> BudgetedType:
        """The method keeping exactly ``total`` entries of a prompt of ``tokens`` tokens.

        Raises:
            UserError: the total does not hold what is always kept.
        """
        mean = round(total / (shape.layers * shape.kv_heads))
        edges = 0 if self.edges_in_budget else self.edges()
        least = self.edges() if self.edges_in_budget else 0
        options: dict[str, Any] = {"total": total, "budget": max(mean - edges, least, 1)}
        method = replace(self, **options)
        method.counts(tokens, shape)  # refuses what cannot be
        return method

    def for_heads(self: BudgetedType, heads: slice) -> BudgetedType:
        if self.total is not None:
            raise NeedsAllHeadsError(
                f"{self.name}: a total is split over all heads, which no process of a "
                "tensor-parallel group has; use budget"
            )
        part = self.allocator.for_heads(heads)
        if part is self.allocator:
            return self
        options: dict[str, Any] = {"budgets": part}
        return replace(self, **options)
