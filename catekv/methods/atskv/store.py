"""ATSKV while decoding: relevance follows the attention, entries change tiers, some are fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.ragged import BlockList, RaggedPrefix, storage_bytes
from catekv.kernels.ragged_decode import causal_tail_mask
from catekv.kernels.workspace import Workspace
from catekv.methods.atskv import control as control
from catekv.methods.atskv.relevance import RelevancePredictor
from catekv.methods.atskv.tiers import TwoTiers
from catekv.methods.stores.base import DecodeStore

#: Entries whose keys become float32 at once, and logits held at once, when attention is added up.
BLOCK_ENTRIES = 8192
MAX_LOGITS = 1 << 24


@dataclass(frozen=True)
class TierRules:
    """The numbers by which entries change tiers; named and explained in
    :class:`catekv.methods.atskv.method.ATSKV`."""

    q_min: float
    q_max: float
    beta: float
    inertia: float
    smoothing: float
    update_every: int
    budget: int | None
    exact: bool


@dataclass(frozen=True, eq=False)
class TierState:
    """What relevance is made of, over the columns of the prompt.

    Attributes:
        static: float32 [batch, tokens, width], the predictor's part that never changes.
        sums: float32 [batch, query_heads, tokens], attention received.
        observers: float32 [batch, kv_heads, tokens], what the sums are divided by.
        soft: float32 [batch, tokens], the soft mask.
        valid: bool [batch, tokens], False on padding.
        fixed: bool [batch, tokens], columns that never change their tier.
        levels: the quantile level of every sequence.
        limits: the most active entries of every sequence; None: no limit.
        changes: relevance below which and above which tokens of a sequence change tiers.
    """

    static: Tensor
    sums: Tensor
    observers: Tensor
    soft: Tensor
    valid: Tensor
    fixed: Tensor
    levels: tuple[float, ...]
    limits: tuple[int | None, ...]
    changes: tuple[tuple[float, float], ...]

    def tensors(self) -> list[Tensor]:
        return [self.static, self.sums, self.observers, self.soft, self.valid, self.fixed]

    def select_rows(self, indices: Sequence[int]) -> TierState:
        where = torch.tensor(indices, device=self.valid.device)
        static, sums, observers, soft, valid, fixed = (t[where] for t in self.tensors())
        return TierState(
            static,
            sums,
            observers,
            soft,
            valid,
            fixed,
            tuple(self.levels[b] for b in indices),
            tuple(self.limits[b] for b in indices),
            tuple(self.changes[b] for b in indices),
        )


class TierStore(DecodeStore):
    """Active entries on the device, passive ones in host memory; tokens generated later stay in the
    tail and are always active.

    Every forward fetches passive entries for its newest query. Its attention is added to the
    features of the entries it saw; after ``update_every`` tokens the relevance is computed again
    and entries change tiers: down if the relevance is below the lower threshold or the soft mask
    has gone, up if it is above the upper one and the soft mask is there.
    """

    # takes no tokens over, but changes all the same
    absorbs = True

    def __init__(
        self,
        tiers: TwoTiers,
        state: TierState,
        predictor: RelevancePredictor,
        rules: TierRules,
        since_update: int = 0,
    ):
        self.tiers, self.state = tiers, state
        self.predictor, self.rules = predictor, rules
        self.since_update = since_update
        if rules.update_every:
            # updates are counted in tokens of the whole batch
            self.padded_from = math.inf
        self._shared = False

    @torch.no_grad()
    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        # the newest query alone: with left padding the others may be those of padding
        self.tiers.fetch(queries[:, :, -1:])
        return self.tiers.prefix, None

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        if self.rules.update_every:
            self._add_attention(queries, keys, scaling, visible)
            self.since_update += queries.shape[2]
            if self.since_update >= self.rules.update_every:
                self.since_update = 0
                self.update(keys.shape[2])
        return 0

    def _add_attention(
        self, queries: Tensor, tail_keys: Tensor, scaling: float, visible: Tensor | None
    ) -> None:
        """Add the attention rows of this forward to the sums of the entries it attended to."""
        if self._shared:
            self.state = replace(
                self.state, sums=self.state.sums.clone(), observers=self.state.observers.clone()
            )
            self._shared = False
        batch, query_heads, count, dim = queries.shape
        kv_heads, tail = tail_keys.shape[1:3]
        group = query_heads // kv_heads
        for b in range(batch):
            keys, _, bias = self.tiers.block(b)
            columns = self.tiers.slot_columns[b]
            real = torch.ones(count, dtype=torch.bool, device=keys.device)
            seen = causal_tail_mask(count, tail, keys.device)[0, 0]
            if visible is not None:
                real, seen = visible[b, tail - count :], seen & visible[b]
            received = torch.zeros(kv_heads, group, keys.shape[1], device=keys.device)
            step = max(1, MAX_LOGITS // (query_heads * (keys.shape[1] + tail)))
            for start in range(0, count, step):
                part = slice(start, min(start + step, count))
                asked = queries[b, :, part].float().reshape(kv_heads, -1, dim) * scaling
                size = (kv_heads, group, part.stop - start)
                before = _logits(asked, keys).view(*size, -1) + bias[:, None, None]
                after = _logits(asked, tail_keys[b]).view(*size, -1)
                after = after.masked_fill(~seen[part], torch.finfo(torch.float32).min)
                weights = torch.cat([before, after], dim=-1).softmax(dim=-1)
                weights = weights[..., : keys.shape[1]] * real[part, None]
                received += weights.sum(dim=2)
            sums = self.state.sums[b].view(kv_heads, group, -1)
            sums.scatter_add_(-1, columns[:, None].expand(-1, group, -1), received)
            asking = real.sum()
            if self.predictor.config.causal_normalised:
                met = (bias == 0) * asking.float()
                self.state.observers[b].scatter_add_(-1, columns, met)
            else:
                self.state.observers[b] += asking

    def relevance(self) -> Tensor:
        """Relevance of every column now: float32 [batch, tokens]; padding has no meaning."""
        state = self.state
        group = state.sums.shape[1] // state.observers.shape[1]
        observers = state.observers.repeat_interleave(group, dim=1).clamp(min=1.0)
        return self.predictor.from_static(state.static, state.sums, observers)

    def active(self) -> Tensor:
        """Which columns are active: bool [batch, tokens]."""
        mask = torch.zeros_like(self.state.valid)
        for b, columns in enumerate(self.tiers.columns):
            mask[b, columns] = True
        return mask

    def update(self, tail: int) -> None:
        """Compute levels, soft masks and tiers again; ``tail`` tokens are active besides.

        Raises:
            UserError: the passive tier is full; everything is as it was before.
        """
        rules, state = self.rules, self.state
        relevance, active = self.relevance(), self.active()
        soft, wanted_active, levels = state.soft.clone(), active.clone(), []
        for b, (level, limit) in enumerate(zip(state.levels, state.limits, strict=True)):
            columns = state.valid[b].nonzero().squeeze(-1)
            count = int(active[b].sum())
            if rules.budget is not None:
                pressure = (count + tail) / rules.budget if rules.budget else 1.0
                target = control.quantile_level(pressure, rules.q_min, rules.q_max)
                level = control.smoothed_level(level, target, rules.smoothing)
            levels.append(level)
            score = relevance[b, columns]
            fixed, own = state.fixed[b, columns], active[b, columns]
            if rules.exact and limit is not None:
                mask = control.best_with(score, fixed & own, limit)
            else:
                mask = control.relevance_mask(score, level, rules.beta)
            soft[b, columns] = control.momentum(soft[b, columns], mask, rules.inertia)
            wanted = soft[b, columns] > 0.5
            demote, promote = control.migrate(score, own, *state.changes[b])
            demote = (demote | (own & ~wanted)) & ~fixed
            promote = promote & wanted & ~fixed
            if limit is not None:
                room = limit - int((own & ~demote).sum())
                promote = control.best_of(score, promote, room)
            wanted_active[b, columns] = (own & ~demote) | promote
        # first what may be refused: then nothing has changed
        if not torch.equal(wanted_active, active):
            self.tiers = self.tiers.move(wanted_active)
        self.state = replace(state, soft=soft, levels=tuple(levels))

    def lengths(self) -> Tensor:
        return self.tiers.stored()

    def tensors(self) -> list[Tensor]:
        return [
            *self.tiers.device_tensors(),
            *self.tiers.host_tensors(),
            *self.state.tensors(),
        ]

    def select_rows(self, indices: list[int]) -> TierStore:
        return TierStore(
            self.tiers.rearranged(indices),
            self.state.select_rows(indices),
            self.predictor,
            self.rules,
            self.since_update,
        )

    def describe(self) -> dict[str, Any]:
        """Bytes by place, and by tier: ``active`` and ``passive`` entries (with their index) and
        the ``features`` that relevance is made of; ``file`` is the part of the passive tier in
        memory-mapped files. On a model in host memory ``host`` still means the passive tier."""
        active, passive = self.tiers.nbytes()
        mapped = self.tiers.file_bytes()
        features = storage_bytes(self.state.tensors())
        return {
            "device": active + features,
            "host": passive - mapped,
            "file": mapped,
            "active": active,
            "passive": passive,
            "features": features,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> TierStore:
        # What is written in place is copied by whoever writes first; the rest is immutable.
        twin = TierStore(
            self.tiers.share(), self.state, self.predictor, self.rules, self.since_update
        )
        self._shared = twin._shared = True
        return twin


def _logits(queries: Tensor, keys: Tensor) -> Tensor:
    """float32 [kv_heads, queries, entries] of float32 queries and keys [kv_heads, entries, dim]."""
    logits = queries.new_empty(*queries.shape[:2], keys.shape[1])
    for start in range(0, keys.shape[1], BLOCK_ENTRIES):
        part = slice(start, start + BLOCK_ENTRIES)
        logits[..., part] = queries @ keys[:, part].float().transpose(1, 2)
    return logits
