"""KeepKV (2026): entries that leave are merged so that the output of the moment does not change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Merged, ModelShape, Needs, Observed, Selection, register
from catekv.methods.budgeted import Budgeted
from catekv.methods.h2o import H2O, received_attention, row_capacities, with_halved_window
from catekv.methods.merging import group_mean, group_shares, group_sum, nearest_kept

if TYPE_CHECKING:
    from catekv.layout import RaggedPrefix
    from catekv.stores.merging import KeepKVStore

#: A mean log-score below this in size cannot be divided by: the plain mean of the keys is taken.
LEAST_LOG_SCORE = 1e-3


def updated_average(log_average: Tensor, log_scores: Tensor, alpha: float) -> Tensor:
    """Log of ``alpha * average + (1 - alpha) * scores``."""
    return torch.logaddexp(log_average + math.log(alpha), log_scores + math.log1p(-alpha))


def corrected_average(log_average: Tensor, steps: Tensor, alpha: float) -> Tensor:
    """Log of ``average / (1 - alpha ** steps)``: the average of ``steps`` scores from 0 on."""
    return log_average - torch.log1p(-torch.pow(alpha, steps.float()))


def window_average(
    queries: Tensor, keys: Tensor, positions: Tensor, tokens: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """Moving average of the scores ``exp(logit)`` over the window's queries, oldest first.

    Args:
        queries: [group, window, head_dim], scaled: the last ``window`` of ``tokens`` queries. The
            scores of a group are averaged.
        keys: [entries, head_dim]; positions: int64 [entries], entries are seen from there on.

    Returns:
        Log of the average float32 [entries], not corrected, and how many queries saw each entry.
    """
    window = queries.shape[1]
    logits = queries.float() @ keys.float().T
    scores = logits.logsumexp(dim=0) - math.log(queries.shape[0])
    asked = torch.arange(tokens - window, tokens, device=keys.device)
    weight = (tokens - 1 - asked) * math.log(alpha) + math.log1p(-alpha)
    hidden = positions > asked[:, None]
    log_average = (scores + weight[:, None]).masked_fill(hidden, -torch.inf).logsumexp(dim=0)
    return log_average, (~hidden).sum(dim=0)


def zip_factor(log_weight: Tensor, log_votes: Tensor, mean_log_score: Tensor) -> Tensor:
    """What the mean key of merged entries is multiplied by, so that ``votes * exp(logit)`` of the
    result is the sum of the weights; 1 where that cannot be (logits around 0)."""
    wanted = log_weight - log_votes
    factor = wanted / mean_log_score
    possible = (mean_log_score.abs() > LEAST_LOG_SCORE) & (factor > 0) & factor.isfinite()
    return torch.where(possible, factor, 1.0)


@dataclass(frozen=True, eq=False)
class ZipMerge:
    """Kept entries after merging: ``keys``, ``values`` [kept, dim], ``log_votes`` [kept]."""

    keys: Tensor
    values: Tensor
    log_votes: Tensor


def zip_merge(
    own: tuple[Tensor, Tensor, Tensor, Tensor],
    leaving: tuple[Tensor, Tensor, Tensor, Tensor],
    target: Tensor,
    merged: Tensor,
) -> ZipMerge:
    """Merge leaving entries into kept ones, several into one by sums over all of them.

    Args:
        own, leaving: keys, values [entries, dim], log-votes and log-scores float32 [entries].
        target: int64 [leaving]; merged: bool [leaving].
    """
    keys, values, log_votes, log_scores = own
    left_keys, left_values, left_votes, left_scores = leaving
    shares = group_shares(log_votes + log_scores, left_votes + left_scores, target, merged)
    votes = group_shares(log_votes, left_votes, target, merged)[2]
    mean_score = group_sum(shares[0] * log_scores, shares[1] * left_scores, target)
    new_keys = group_mean(keys, left_keys, target, shares[:2])
    new_keys *= zip_factor(shares[2], votes, mean_score)[:, None]
    new_values = group_mean(values, left_values, target, shares[:2])
    touched = group_sum(torch.zeros_like(log_votes), merged.float(), target)[:, None] > 0
    return ZipMerge(
        torch.where(touched, new_keys.to(keys.dtype), keys),
        torch.where(touched, new_values.to(values.dtype), values),
        votes,
    )


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
            None, merged=[[row(b, head) for head in range(heads)] for b in range(batch)]
        )

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None
    ) -> KeepKVStore | None:
        from catekv.slot_store import Eviction, kept_entries
        from catekv.stores.merging import KeepKVStore

        if not self.decode:
            return None
        keep = self.keeper.select_padded([observed], valid)[0].keep
        assert keep is not None
        assert observed.column_sums is not None
        entries = kept_entries(keep, received_attention(observed.column_sums, keep.shape[1]), valid)
        rule = Eviction(row_capacities(self, observed), self.edges())
        queries = observed.queries.unflatten(1, (keep.shape[1], -1)) * observed.scaling
        return KeepKVStore(prefix, entries, rule, self.threshold, self.alpha, queries.flatten(0, 1))
