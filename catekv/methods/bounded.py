"""Base of the methods that go on choosing while they decode, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Observed, Selection
from catekv.methods.budgeted import ENDLESS, Budgeted
from catekv.methods.formulas.schedule import RULES, Clock, Schedule
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.stores.bounded import BoundedStore, Layer
    from catekv.models.shape import ModelShape


@dataclass(frozen=True)
class Bounded(Budgeted):
    """Options that all of them share.

    A head holds ``budget`` entries after an event, and about ``every`` more before the next one.
    A prompt that is longer is compressed when it has been read. Keys keep their positions.

    Args:
        budget: mean entries that a head holds after an event, of prompt and answer together.
        total: entries of all layers and heads together, instead of ``budget``.
        every: new tokens from one event to the next.
        buffer: newest tokens that stay, among the budget; None: as many as ``every``, at most half
            of the budget.
        rule: when events come: ``counter`` (``every`` tokens after the last one), ``multiple``
            (above the budget, at lengths that are multiples of ``every``), ``position`` (at the
            budget, at positions that are) or ``slack`` (``every`` entries above the budget).
        protect_prompt: the prompt stays whole; the budget must hold it.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
    """

    edges_option: ClassVar[str] = "buffer"
    edges_in_budget: ClassVar[bool] = True

    budget: int = method_option(2048, least=1)
    every: int = method_option(128, least=1)
    buffer: int | None = method_option(None, least=0)
    rule: str = method_option("counter", words=RULES)
    protect_prompt: bool = False
    budgets: Any = method_option(None, convert=budgets_from)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total is None and self.edges() > self.budget:
            raise UserError(
                f"{self.name}: budget {self.budget} does not hold the newest {self.edges()} tokens "
                f"that are always kept; raise the budget or lower {self.edges_option}"
            )

    def edges(self) -> int:
        return min(self.every, self.budget // 2) if self.buffer is None else self.buffer

    def schedule(self, shape: ModelShape) -> Schedule:
        """When heads are cut, by the mean of what they are cut to; the same in all layers."""
        mean = self.budget_table(ENDLESS, shape).double().mean()
        return Schedule(self.rule, round(float(mean)), self.every)

    def entry_scores(self, observed: Observed) -> Tensor:
        """Score of every entry, float32 [batch, kv_heads, entries]; the largest are kept. While
        decoding the method is asked for one sequence, and perhaps for a part of its heads."""
        raise NotImplementedError

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        keep = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device)
        if self.protect_prompt:
            self._refuse_unless_prompt_fits(observed)
            return Selection(keep)
        counts = self.counts_of(observed)
        before = max(0, observed.tokens - self.edges())
        if int(counts.min()) < before:
            keep[:, :, :before] = top_mask(self.entry_scores(observed)[:, :, :before], counts)
        return Selection(keep)

    def _refuse_unless_prompt_fits(self, observed: Observed) -> None:
        least = int(self.budget_table(ENDLESS, observed.shape).min())
        always = observed.tokens + self.edges()
        if always >= least:
            raise UserError(
                f"{self.name}: a budget of {least} entries holds no more than the prompt of "
                f"{observed.tokens} tokens and the newest {self.edges()}, which are always kept "
                f"({always}); raise the budget or set protect_prompt=false"
            )

    def kept(self, observed: Observed, counts: Tensor) -> Tensor:
        """Which entries stay at an event, bool [1, kv_heads, entries].

        Args:
            observed: some heads of one sequence, with what is :class:`Held`.
            counts: int64 [kv_heads], entries that stay of each.
        """
        held = observed.held
        assert held is not None
        certain = torch.zeros_like(held.positions, dtype=torch.bool)
        certain[..., max(0, observed.tokens - self.edges()) :] = True
        if self.protect_prompt:
            certain |= held.positions < held.prompt
        scores = self.entry_scores(observed)
        return top_mask(scores.masked_fill(certain, torch.inf), counts)

    @property
    def own_store(self) -> bool:
        return True

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> BoundedStore:
        from catekv.methods.stores.bounded import BoundedStore
        from catekv.methods.stores.recent_queries import RecentQueries

        batch, tokens = observed.keys.shape[0], observed.tokens
        lengths = [tokens] * batch if valid is None else valid.sum(dim=-1).tolist()
        queries = None
        if self.needs.window:
            queries = RecentQueries(observed.queries, lengths, self.needs.window)
        layer = self._layer(_without_tokens(observed))
        return BoundedStore(
            layer,
            prefix,
            _positions(prefix, selection.tokens, valid),
            [Clock(min(length, layer.schedule.target), length) for length in lengths],
            lengths,
            queries,
        )

    def restored_store(
        self,
        prefix: RaggedPrefix,
        observed: Observed,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> BoundedStore:
        from catekv.methods.stores.bounded import BoundedStore
        from catekv.methods.stores.recent_queries import RecentQueries

        queries = None
        if "queries" in tensors:
            queries = RecentQueries.restored(
                tensors["queries"], tensors["base"], state["known"], state["columns"]
            )
        return BoundedStore(
            self._layer(observed),
            prefix,
            tensors["positions"],
            [Clock(*numbers) for numbers in state["clocks"]],
            state["prompts"],
            queries,
        )

    def _layer(self, about: Observed) -> Layer:
        from catekv.methods.stores.bounded import Layer

        targets = self.budget_table(ENDLESS, about.shape)[about.layer].to(about.keys.device)
        return Layer(self, self.schedule(about.shape), about, targets)


def _without_tokens(observed: Observed) -> Observed:
    """The layer without what it has seen, which must not stay in memory."""
    queries, keys, values = (
        states[:, :, :0].clone() for states in (observed.queries, observed.keys, observed.values)
    )
    return Observed(
        queries,
        keys,
        values,
        observed.scaling,
        observed.layer,
        observed.num_layers,
        rotation=observed.rotation,
        form=observed.form,
        output_projection=observed.output_projection,
    )


def _positions(prefix: RaggedPrefix, keep: Tensor, valid: Tensor | None) -> Tensor:
    """Positions of the prompt's tokens by the slot they lie in, int32 [slots]."""
    batch, heads, tokens = keep.shape
    places = torch.arange(tokens, dtype=torch.int32, device=keep.device).expand(batch, tokens)
    if valid is not None:
        places = valid.cumsum(dim=-1, dtype=torch.int32) - 1
    found = places.new_zeros(prefix.slots)
    for row, (start, length) in enumerate(prefix.host_rows):
        b, head = divmod(row, heads)
        found[start : start + length] = places[b][keep[b, head]]
    return found
