"""Stores that merge what leaves while decoding: CaM into values, KeepKV into entries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.formulas.vote_merge import (
    corrected_average,
    updated_average,
    window_average,
    zip_factor,
)
from catekv.methods.stores.slots import Entries, Eviction, Newcomer, SlotStore

if TYPE_CHECKING:
    from catekv.methods.cam import CaM

_FAR = torch.iinfo(torch.int64).max


class CamStore(SlotStore):
    """Adds values that leave to the next ``method.following`` entries by position.

    Args:
        prefix, entries, rule: as for every :class:`SlotStore`.
        method: denominator, draws.
        layer: index of the layer, for the draws.
    """

    def __init__(
        self, prefix: RaggedPrefix, entries: Entries, rule: Eviction, method: CaM, layer: int
    ):
        self.method = method
        self.layer = layer
        super().__init__(prefix, entries, rule)

    def leave(self, slot: Tensor, newcomer: Newcomer, leaving: Tensor) -> Newcomer:
        entries = self.entries
        rows, width = entries.positions.shape
        heads = self.prefix.kv_heads
        here = slot.clamp(max=width - 1)[:, None]
        left_position, left_score = (
            entries.positions.gather(1, here),
            entries.scores.gather(1, here),
        )
        # the newcomer is one of those that stay
        position = torch.cat([entries.positions.scatter(1, here, -1), entries.seen[:, None]], dim=1)
        score = torch.cat([entries.scores, newcomer.known["scores"][:, None]], dim=1)
        following = min(self.method.following, width + 1)
        later = position.masked_fill(position <= left_position, _FAR)
        nearest, order = (part[:, :following] for part in later.sort(dim=1))
        takes = nearest < _FAR
        if self.method.denominator == "max":
            below = score.masked_fill(position < 0, 0.0).amax(dim=1, keepdim=True)
        else:
            among = score.gather(1, order).masked_fill(~takes, 0.0).sum(dim=1, keepdim=True)
            below = among / takes.sum(dim=1, keepdim=True).clamp(min=1)
        chance = (left_score / below.clamp(min=torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
        head = torch.arange(rows, device=slot.device)[:, None] % heads
        share = self.method.merges(chance, self.layer, head, left_position)
        share = share.masked_fill(~leaving[:, None], 0.0) / self.method.following
        storage = self.prefix.values
        part = storage[self.slots(width).gather(1, here).squeeze(1)].float() * share
        given = part[:, None] * takes[..., None]
        to_newcomer = (order == width)[..., None]
        value = newcomer.value.float() + (given * to_newcomer).sum(dim=1)
        # places outside a row's room name a slot in it, and are given nothing
        place = self.slots(width).gather(1, order.clamp(max=width - 1))
        stored = given.masked_fill(to_newcomer, 0.0).to(storage.dtype)
        storage.index_put_((place,), stored, accumulate=True)
        return replace(newcomer, value=value.to(newcomer.value.dtype))


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

    def leave(self, slot: Tensor, newcomer: Newcomer, leaving: Tensor) -> Newcomer:
        entries = self.entries
        width = entries.positions.shape[1]
        here = slot.clamp(max=width - 1)[:, None]
        place = self.slots(width).gather(1, here).squeeze(1)
        left_key, left_value = self.prefix.keys[place].float(), self.prefix.values[place].float()
        left_norm = entries.norms.gather(1, here)
        # cosines with all that stay, the newcomer last
        products = torch.cat(
            [
                self.logits(left_key[:, None])[:, 0],
                (left_key * newcomer.key.float()).sum(dim=-1, keepdim=True),
            ],
            dim=1,
        )
        lengths = torch.cat([entries.norms, newcomer.known["norms"][:, None]], dim=1)
        cosine = products / (left_norm * lengths).clamp(min=torch.finfo(torch.float32).tiny)
        stays = F.pad(entries.used.scatter(1, here, False), (0, 1), value=True)
        similarity, target = cosine.masked_fill(~stays, -torch.inf).max(dim=1)
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
        log_weight, log_votes = (
            torch.logaddexp(weight, left_weight),
            torch.logaddexp(votes, left_votes),
        )
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
