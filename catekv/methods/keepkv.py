"""KeepKV (2026): entries that leave are merged so that the output of the moment does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.ragged import Merged
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.formulas.merging import nearest_kept
from catekv.methods.formulas.vote_merge import corrected_average, window_average, zip_merge
from catekv.methods.h2o import H2O, row_capacities, selected_entries, with_halved_window
from catekv.methods.options import check_number
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix

    pass


@register
@dataclass(frozen=True)
class KeepKV(Budgeted):
    """Evict as H2O does; merge what leaves into its most similar entry, counting votes.

    Every entry has votes (at first one), whose log is added to its attention logit. An entry that
    leaves is merged into the kept entry with the largest cosine of their keys, if that exceeds
    ``threshold``, and dropped otherwise. Weights are votes times a bias-corrected moving average of
    ``exp(logit)`` (mean over the query group), kept as logs; the merged key is scaled so that the
    attention of a query with the average's scores does not change. Where that is impossible (logits
    around 0) the plain weighted mean is taken. The prompt is merged first and then evicted, many
    into one by sums.

    Args:
        budget: mean tokens kept per head, recent ones included.
        total: entries of all layers and heads together, instead of ``budget``.
        recent: tokens of the recent window; None: half of the budget.
        threshold: cosine that a merge must exceed.
        alpha: what the moving average keeps of itself at every query.
        window: last prompt queries that start the average.
        decode: go on merging while decoding; False: new tokens are appended.
        budgets: how the tokens are split over layers and heads
            (:mod:`catekv.methods.allocators`); default: evenly.
    """

    name: ClassVar[str] = "keepkv"
    paper: ClassVar[str] = "KeepKV: Eliminating Output Perturbation in KV Cache Compression, 2026"
    edges_option: ClassVar[str] = "recent"
    edges_in_budget: ClassVar[bool] = True

    recent: int | None = None
    threshold: float = 0.8
    alpha: float = 0.9
    window: int = 32
    decode: bool = True
    budgets: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_below("window", 1)
        for option in ("threshold", "alpha"):
            check_number(self.name, option, getattr(self, option))
        if not -1 <= self.threshold <= 1:
            raise UserError(f"keepkv: threshold {self.threshold} is outside [-1, 1]")
        if not 0 < self.alpha < 1:
            raise UserError(f"keepkv: alpha {self.alpha} must lie between 0 and 1")
        self.keeper  # noqa: B018 - making it refuses a window larger than the budget

    @property
    def keeper(self) -> H2O:
        """The method that decides what is kept."""
        return H2O(budget=self.budget, total=self.total, recent=self.recent, budgets=self.allocator)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window, column_sums=True)

    def edges(self) -> int:
        return max(1, self.budget // 2) if self.recent is None else self.recent

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> KeepKV:
        if self.recent is not None:
            return super().with_total(total, tokens, shape)
        return with_halved_window(self, total, tokens, shape)

    def select_observed(self, observed: Observed) -> Selection:
        batch, heads, tokens, _ = observed.keys.shape
        keep = self.keeper.select_observed(observed).keep
        assert keep is not None
        queries = observed.queries.unflatten(1, (heads, -1)) * observed.scaling
        position = torch.arange(tokens, device=keep.device)

        def row(b: int, head: int) -> Merged:
            stays = keep[b, head]
            keys, values = observed.keys[b, head], observed.values[b, head]
            if bool(stays.all()) or not bool(stays.any()):
                return Merged(keys[stays], values[stays])
            average = window_average(queries[b, head], keys, position, tokens, self.alpha)
            scores = corrected_average(*average, self.alpha)
            target, similarity = nearest_kept(keys[~stays], keys[stays])
            one_vote = torch.zeros_like(scores)
            done = zip_merge(
                (keys[stays], values[stays], one_vote[stays], scores[stays]),
                (keys[~stays], values[~stays], one_vote[~stays], scores[~stays]),
                target,
                similarity > self.threshold,
            )
            return Merged(done.keys, done.values, done.log_votes)

        return Selection(
            None,
            merged=[[row(b, head) for head in range(heads)] for b in range(batch)],
            stays=keep,
        )

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> KeepKVStore | None:
        from catekv.methods.stores.slots import Eviction

        pass

        if not self.decode:
            return None
        entries = selected_entries(selection, observed, valid)
        rule = Eviction(row_capacities(self, observed), self.edges())
        queries = observed.queries.unflatten(1, (observed.keys.shape[1], -1)) * observed.scaling
        return KeepKVStore(prefix, entries, rule, self.threshold, self.alpha, queries.flatten(0, 1))
