"""KeepKV (2026): entries that leave are merged so that the output of the moment does not change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.kernels.ragged import Merged, RaggedPrefix
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.merging import nearest_kept
from catekv.methods.formulas.vote_merge import (
    corrected_average,
    updated_average,
    window_average,
    zip_factor,
    zip_merge,
)
from catekv.methods.h2o import H2O, row_capacities, selected_entries, with_halved_window
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.selection import MergedSelection
from catekv.methods.stores.slots import Entries, Eviction, Newcomer, SlotStore
from catekv.models.shape import ModelShape


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
    example = Example({"budget": 12, "threshold": 0.2}, original=False)
    memory_formula = MemoryFormula("budget", "kept*(e + 32)", besides="4*kept")
    paper: ClassVar[str] = "KeepKV: Eliminating Output Perturbation in KV Cache Compression, 2026"
    edges_option: ClassVar[str] = "recent"
    edges_in_budget: ClassVar[bool] = True

    recent: int | None = None
    threshold: float = method_option(0.8, least=-1, most=1)
    alpha: float = method_option(0.9, above=0, below=1)
    window: int = method_option(32, least=1)
    decode: bool = True
    budgets: Any = method_option(None, convert=budgets_from)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        queries = observed.queries.unflatten(1, (heads, -1)) * observed.plain_scaling(self.name)
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

        return MergedSelection(
            merged=[[row(b, head) for head in range(heads)] for b in range(batch)],
            stays=keep,
        )

    @property
    def own_store(self) -> bool:
        return self.decode

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> KeepKVStore | None:
        from catekv.methods.stores.slots import Eviction

        if not self.decode:
            return None
        entries = selected_entries(selection, observed, valid)
        rule = Eviction(row_capacities(self, observed), self.edges())
        queries = observed.queries.unflatten(
            1, (observed.keys.shape[1], -1)
        ) * observed.plain_scaling(self.name)
        return KeepKVStore(prefix, entries, rule, self.threshold, self.alpha, queries.flatten(0, 1))


@dataclass(frozen=True, eq=False)
class ScoredEntries(Entries):
    """Entries with what KeepKV knows of them besides.

    Attributes:
        averages: float32 [rows, width], log of the moving average of ``exp(logit)``, not corrected.
        steps: int64 [rows, width], scores in it.
        norms: float32 [rows, width], length of the keys.
    """

    averages: Tensor
    steps: Tensor
    norms: Tensor


class KeepKVStore(SlotStore):
    """Merges what leaves into its most similar entry, or drops it.

    Args:
        prefix, entries, rule: as for every :class:`SlotStore`.
        threshold, alpha: options of the method.
        queries: [rows, group, window, head_dim], scaled: the last prompt queries.
    """

    entries: ScoredEntries

    def __init__(
        self,
        prefix: RaggedPrefix,
        entries: Entries,
        rule: Eviction,
        threshold: float,
        alpha: float,
        queries: Tensor,
    ):
        self.threshold = threshold
        self.alpha = alpha
        averages = torch.zeros_like(entries.scores)
        steps = torch.zeros_like(entries.positions)
        norms = torch.zeros_like(entries.scores)
        lengths = [length for _, length in prefix.host_rows]
        for row, (length, seen) in enumerate(zip(lengths, entries.seen.tolist(), strict=True)):
            keys, _, _ = prefix.row(row // prefix.kv_heads, row % prefix.kv_heads)
            norms[row, :length] = torch.linalg.vector_norm(keys.float(), dim=-1)
            asked = queries[row, :, max(0, queries.shape[2] - seen) :]
            averages[row, :length], steps[row, :length] = window_average(
                asked, keys, entries.positions[row, :length], seen, alpha
            )
        super().__init__(
            prefix,
            ScoredEntries(**entries.tensors(), averages=averages, steps=steps, norms=norms),
            rule,
        )

    def observe(
        self, logits: Tensor, own_logits: Tensor, key: Tensor, active: Tensor
    ) -> dict[str, Tensor]:
        known = super().observe(logits, own_logits, key, active)
        entries = self.entries
        group = math.log(logits.shape[1])
        scores = logits.logsumexp(dim=1) - group
        counts = active[:, None] & entries.used
        averages = updated_average(entries.averages, scores, self.alpha)
        self.entries = replace(
            entries,
            averages=torch.where(counts, averages, entries.averages),
            steps=entries.steps + counts,
        )
        return known | self._fresh(key, own_logits.logsumexp(dim=1) - group)

    def unobserved(self, key: Tensor) -> dict[str, Tensor]:
        known = super().unobserved(key)
        return known | self._fresh(key, torch.zeros_like(known["scores"]))

    def _fresh(self, key: Tensor, log_score: Tensor) -> dict[str, Tensor]:
        nothing = torch.full_like(log_score, -torch.inf)
        return {
            "averages": updated_average(nothing, log_score, self.alpha),
            "steps": torch.ones_like(self.entries.seen),
            "norms": torch.linalg.vector_norm(key.float(), dim=-1),
        }

    def _most_similar(
        self, here: Tensor, left_key: Tensor, newcomer: Newcomer
    ) -> tuple[Tensor, Tensor]:
        """Largest cosine of the keys that leave with all that stay, the newcomer last, and where.

        Args:
            here: [rows, 1], their slots. left_key: [rows, head_dim].
        """
        entries = self.entries
        own = (left_key * newcomer.key.float()).sum(dim=-1, keepdim=True)
        products = torch.cat([self.logits(left_key[:, None])[:, 0], own], dim=1)
        lengths = torch.cat([entries.norms, newcomer.known["norms"][:, None]], dim=1)
        lengths = lengths * entries.norms.gather(1, here)
        cosine = products / lengths.clamp(min=torch.finfo(torch.float32).tiny)
        stays = F.pad(entries.used.scatter(1, here, False), (0, 1), value=True)
        largest = cosine.masked_fill(~stays, -torch.inf).max(dim=1)
        return largest.values, largest.indices

    def leave(self, slot: Tensor, newcomer: Newcomer, leaving: Tensor) -> Newcomer:
        entries = self.entries
        width = entries.positions.shape[1]
        here = slot.clamp(max=width - 1)[:, None]
        place = self.slots(width).gather(1, here).squeeze(1)
        left_key, left_value = self.prefix.keys[place].float(), self.prefix.values[place].float()
        similarity, target = self._most_similar(here, left_key, newcomer)
        merges = leaving & (similarity > self.threshold)
        into_newcomer = target == width
        other = target.clamp(max=width - 1)
        other_place = self.slots(width).gather(1, other[:, None]).squeeze(1)

        def of_target(stored: Tensor, own: Tensor) -> Tensor:
            chosen = into_newcomer.view(-1, *[1] * (stored.ndim - 1))
            return torch.where(chosen, own, stored)

        def field(name: str) -> Tensor:
            stored: Tensor = getattr(entries, name).gather(1, other[:, None]).squeeze(1)
            return of_target(stored, newcomer.known[name])

        assert self.prefix.bias is not None
        votes = of_target(self.prefix.bias[other_place], newcomer.bias)
        left_votes = self.prefix.bias[place]
        steps = field("steps")
        score = corrected_average(field("averages"), steps, self.alpha)
        left_score = corrected_average(
            entries.averages.gather(1, here).squeeze(1),
            entries.steps.gather(1, here).squeeze(1),
            self.alpha,
        )
        weight, left_weight = votes + score, left_votes + left_score
        share = (left_weight - weight).sigmoid()[:, None]
        log_weight, log_votes = weight.logaddexp(left_weight), votes.logaddexp(left_votes)
        mean_score = share[:, 0] * left_score + (1 - share[:, 0]) * score
        key = of_target(self.prefix.keys[other_place].float(), newcomer.key.float())
        value = of_target(self.prefix.values[other_place].float(), newcomer.value.float())
        key = share * left_key + (1 - share) * key
        key = key * zip_factor(log_weight, log_votes, mean_score)[:, None]
        value = share * left_value + (1 - share) * value
        # the score of the moment is that of both together
        correction = torch.log1p(-torch.pow(self.alpha, steps.float()))
        known = {
            "averages": log_weight - log_votes + correction,
            "norms": torch.linalg.vector_norm(key, dim=-1),
        }
        stored = merges & ~into_newcomer
        self.set_entry(other, key, value, log_votes, stored)
        self.entries = entries.put(other, stored, **known)
        changed = merges & into_newcomer
        own = {name: torch.where(changed, new, newcomer.known[name]) for name, new in known.items()}
        return Newcomer(
            torch.where(changed[:, None], key.to(newcomer.key.dtype), newcomer.key),
            torch.where(changed[:, None], value.to(newcomer.value.dtype), newcomer.value),
            torch.where(changed, log_votes, newcomer.bias),
            newcomer.known | own,
        )
