"""Entries in slots: a store of bounded size for methods that evict or merge while they decode.

Every row (sequence, KV head) has room for a fixed number of entries. While there is room, tokens
taken from the tail fill it; after that each newcomer takes the slot of the entry that it drives
out. Entries therefore lie in no particular order; their positions say how old they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.kernels.packing import pack_merged
from catekv.kernels.ragged import Merged, RaggedPrefix
from catekv.methods.stores.base import WholePrefix

#: Bias of a slot without an entry: attention gives it no weight and no row becomes NaN. Not the
#: least number there is, because kernels multiply biases by log2(e).
HIDDEN = -1e30
#: Rows that are not full yet get room for one part in this many more entries at a time.
GROWTH = 8
LEAST_GROWTH = 64

EntriesType = TypeVar("EntriesType", bound="Entries")


@dataclass(frozen=True)
class Eviction:
    """Which entry a full row gives up for a newcomer.

    Attributes:
        capacity: entries a row may hold, at least 1; int, or one per row.
        recent: newest tokens that stay, the newcomer among them; at least 1.
        sinks: first tokens of the prompt that stay.
        oldest: give up the oldest entry; otherwise the one with the smallest score.
    """

    capacity: int | Sequence[int]
    recent: int
    sinks: int = 0
    oldest: bool = False


@dataclass(frozen=True, eq=False)
class Entries:
    """What is known of the entries of every row, padded to the widest row.

    Attributes:
        positions: int64 [rows, width], counted without padding; -1 where there is no entry.
        scores: float32 [rows, width], running sums of the attention that entries received.
        seen: int64 [rows], tokens of the sequence so far, without padding.
    """

    positions: Tensor
    scores: Tensor
    seen: Tensor

    @property
    def used(self) -> Tensor:
        return self.positions >= 0

    def tensors(self) -> dict[str, Tensor]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def widened(self: EntriesType, width: int) -> EntriesType:
        """The same entries with places for ``width`` of them in every row."""
        extra = (0, width - self.positions.shape[1])
        padded = {
            name: F.pad(tensor, extra, value=-1 if name == "positions" else 0)
            for name, tensor in self.tensors().items()
            if tensor.ndim == 2
        }
        return replace(self, **padded)

    def rows(self: EntriesType, indices: Tensor) -> EntriesType:
        return replace(self, **{name: tensor[indices] for name, tensor in self.tensors().items()})

    def put(self: EntriesType, slot: Tensor, where: Tensor, **new: Tensor) -> EntriesType:
        """Other values [rows] for the entry in ``slot`` [rows] of the rows ``where`` [rows]."""
        slot = slot.clamp(max=self.positions.shape[1] - 1)[:, None]
        changed = {}
        for name, value in new.items():
            old: Tensor = getattr(self, name)
            chosen = torch.where(where[:, None], value[:, None].to(old.dtype), old.gather(1, slot))
            changed[name] = old.scatter(1, slot, chosen)
        return replace(self, **changed)


@dataclass(frozen=True, eq=False)
class Newcomer:
    """A token of every row that is about to be stored: ``key``, ``value`` [rows, dim], ``bias``
    float32 [rows], and what is ``known`` of it, [rows] by field of :class:`Entries`."""

    key: Tensor
    value: Tensor
    bias: Tensor
    known: dict[str, Tensor]


def kept_entries(keep: Tensor, scores: Tensor, valid: Tensor | None = None) -> Entries:
    """Entries of a prefix that was packed from ``keep`` [batch, kv_heads, tokens].

    Args:
        keep: bool, padding included and not kept.
        scores: float32 of the same shape.
        valid: bool [batch, tokens], False on padding; None: no padding.
    """
    batch, heads, tokens = keep.shape
    if valid is None:
        valid = torch.ones(batch, tokens, dtype=torch.bool, device=keep.device)
    rows = keep.reshape(batch * heads, tokens)
    counts = rows.sum(dim=-1)
    # the kept columns first, in order
    order = (~rows).sort(dim=-1, stable=True).indices[:, : int(counts.max())]
    used = torch.arange(order.shape[1], device=keep.device) < counts[:, None]
    positions = (valid.cumsum(dim=-1) - 1).repeat_interleave(heads, dim=0).gather(1, order)
    taken = scores.reshape(batch * heads, tokens).gather(1, order)
    return Entries(
        positions.masked_fill(~used, -1),
        taken.float().masked_fill(~used, 0.0),
        valid.sum(dim=-1).repeat_interleave(heads),
    )


def leaving_slot(entries: Entries, newcomer: Tensor, recent: Tensor, rule: Eviction) -> Tensor:
    """The slot that each row gives up for a newcomer: int64 [rows]. Ties go to the lower position.

    Args:
        entries: what each row holds.
        newcomer: int64 [rows], position of the newcomer.
        recent: int64 [rows], size of the recent window.
    """
    position = entries.positions
    fixed = (position < rule.sinks) | (position > (newcomer - recent)[:, None])
    far = torch.iinfo(torch.int64).max
    if not rule.oldest:
        score = entries.scores.masked_fill(fixed, torch.inf)
        fixed = fixed | (score > score.amin(dim=-1, keepdim=True))
    return position.masked_fill(fixed, far).argmin(dim=-1)


class SlotStore(WholePrefix):
    """Rows of bounded size that take every token over from the tail.

    A forward attends to all entries and its own tokens. Afterwards its tokens are absorbed one
    after the other, as if they had come alone: each gives its attention to the running scores and,
    in full rows, drives out the entry that ``rule`` names. Padding is dropped.

    Subclasses say in :meth:`leave` what becomes of an entry that leaves (here: nothing).

    Args:
        prefix: the entries after prefill; copied.
        entries: what is known of them, in the same order.
        rule: capacity and eviction.
    """

    def __init__(self, prefix: RaggedPrefix, entries: Entries, rule: Eviction):
        rows = prefix.batch * prefix.kv_heads
        self.rule = rule
        self.entries = entries
        capacities = [rule.capacity] * rows if isinstance(rule.capacity, int) else rule.capacity
        held = [length for _, length in prefix.host_rows]
        #: the most entries each row may ever hold, and the most it may hold now (host numbers)
        self.limits = [max(1, *pair) for pair in zip(capacities, held, strict=True)]
        self.bounds = held
        #: int64 [rows], entries of a full row
        self.capacity = torch.tensor(capacities, device=prefix.keys.device).clamp(min=1)
        self.prefix = prefix
        self._make_room(0, copy=True)

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        batch, heads, tail, dim = keys.shape
        asked = queries.shape[2]
        self._make_room(tail)
        rows = batch * heads
        grouped = queries.reshape(rows, -1, asked, dim).float() * scaling
        for token in range(tail):
            active = None
            if visible is not None:
                active = visible[:, token].repeat_interleave(heads)
            # tokens from before the first forward that was observed have no queries
            index = token - (tail - asked)
            query = None if index < 0 else grouped[:, :, index]
            key, value = keys[:, :, token].reshape(rows, dim), values[:, :, token].reshape(rows, -1)
            self._take(query, key, value, active)
        return tail

    def _take(
        self, query: Tensor | None, key: Tensor, value: Tensor, active: Tensor | None
    ) -> None:
        """Absorb one token per row: ``query`` [rows, group, head_dim] (scaled) or None, ``key`` and
        ``value`` [rows, dim]; ``active`` bool [rows] or None (all)."""
        entries = self.entries
        if active is None:
            active = torch.ones_like(entries.seen, dtype=torch.bool)
        if query is None:
            own = self.unobserved(key)
        else:
            logits = self.logits(query)
            own = self.observe(logits, (query * key[:, None].float()).sum(dim=-1), key, active)
        counts = entries.used.sum(dim=-1)
        full = counts >= self.capacity
        recent = self.capacity.clamp(max=self.rule.recent)
        leaving = leaving_slot(self.entries, entries.seen, recent, self.rule)
        slot = torch.where(full, leaving, counts)
        newcomer = Newcomer(key, value, torch.zeros_like(own["scores"]), own)
        newcomer = self.leave(slot, newcomer, full & active)
        self.set_entry(slot, newcomer.key, newcomer.value, newcomer.bias, active)
        known = self.entries.put(slot, active, positions=self.entries.seen, **newcomer.known)
        self.entries = replace(known, seen=known.seen + active)

    def observe(
        self, logits: Tensor, own_logits: Tensor, key: Tensor, active: Tensor
    ) -> dict[str, Tensor]:
        """Add the attention of one query per row to the running scores.

        Args:
            logits: float32 [rows, group, width] over the entries, without biases.
            own_logits: float32 [rows, group], of the token itself.
            key: [rows, head_dim], of the token itself.
            active: bool [rows].

        Returns:
            What is known of the token itself, [rows] by field of :class:`Entries`.
        """
        weights = self.attention(logits, own_logits)
        added = weights[:, :-1].masked_fill(~active[:, None], 0.0)
        self.entries = replace(self.entries, scores=self.entries.scores + added)
        return {"scores": weights[:, -1]}

    def unobserved(self, key: Tensor) -> dict[str, Tensor]:
        """What is known of a token whose query nobody saw."""
        return {"scores": torch.zeros_like(self.entries.scores[:, 0])}

    def attention(self, logits: Tensor, own_logits: Tensor) -> Tensor:
        """Softmax over the entries (with their biases) and the token itself, mean over the group:
        float32 [rows, width + 1]."""
        together = torch.cat([logits + self.bias()[:, None], own_logits[..., None]], dim=-1)
        return together.softmax(dim=-1).mean(dim=1)

    def leave(self, slot: Tensor, newcomer: Newcomer, leaving: Tensor) -> Newcomer:
        """Called before the entry in ``slot`` [rows] is overwritten where ``leaving`` [rows].

        Returns:
            What takes its place.
        """
        return newcomer

    def logits(self, query: Tensor) -> Tensor:
        """Products of ``query`` [rows, group, head_dim] with all keys; 0 where there is no slot:
        float32 [rows, group, width]."""
        prefix = self.prefix
        found = query.new_zeros(*query.shape[:2], self.entries.positions.shape[1])
        for bucket in prefix.buckets:
            rows, length = bucket.query_rows[:, 0], bucket.length
            if bucket.start is not None:
                block = slice(bucket.start, bucket.start + len(rows) * length)
                keys = prefix.keys[block].view(len(rows), length, -1)
            else:
                keys = prefix.keys[self.slots(length)[rows]]
            found[rows, :, :length] = torch.bmm(query[rows], keys.float().transpose(1, 2))
        return found

    def bias(self) -> Tensor:
        """Biases of all entries, float32 [rows, width]; :data:`HIDDEN` where there is none."""
        assert self.prefix.bias is not None
        slots = self.slots(self.entries.positions.shape[1])
        return self.prefix.bias[slots].masked_fill(~self.entries.used, HIDDEN)

    def set_entry(
        self, slot: Tensor, key: Tensor, value: Tensor, bias: Tensor, where: Tensor
    ) -> None:
        """Overwrite one entry of every row ``where`` [rows] is True: ``slot`` [rows], ``key`` and
        ``value`` [rows, dim], ``bias`` [rows]."""
        prefix = self.prefix
        # padding may name the slot after the last one; what it writes is what is there
        place = prefix.offsets.flatten() + slot.clamp(max=prefix.lengths.flatten() - 1)
        assert prefix.bias is not None
        for storage, new in ((prefix.keys, key), (prefix.values, value)):
            storage[place] = torch.where(where[:, None], new.to(storage.dtype), storage[place])
        prefix.bias[place] = torch.where(where, bias, prefix.bias[place])

    def slots(self, width: int) -> Tensor:
        """Storage slots of the first ``width`` entries of all rows, int64 [rows, width]; entries
        beyond a row's room point at its last slot."""
        inner = torch.arange(width, device=self.prefix.keys.device)
        last = self.prefix.lengths.view(-1, 1).long() - 1
        return self.prefix.offsets.view(-1, 1) + torch.minimum(inner, last)

    def _make_room(self, tokens: int, *, copy: bool = False) -> None:
        """Let every row hold ``tokens`` more entries, as far as its limit goes; ``copy`` makes
        storage of the store's own in any case."""
        more = [bound + tokens for bound in self.bounds]
        self.bounds = [min(*pair) for pair in zip(self.limits, more, strict=True)]
        rooms = [room for _, room in self.prefix.host_rows]
        if not copy and all(map(int.__ge__, rooms, self.bounds)):
            return
        spare = [bound + max(bound // GROWTH, LEAST_GROWTH) for bound in self.bounds]
        self._pack([min(*pair) for pair in zip(self.limits, spare, strict=True)])

    def _pack(self, rooms: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Copy the entries of ``rows`` (default: all, in order) into storage with these rooms."""
        prefix = self.prefix
        heads = prefix.kv_heads
        merged = []
        # outside inference mode, so that the storage may be written into within and outside of it
        with torch.inference_mode(False), torch.no_grad():
            for row, room in zip(rows or range(len(rooms)), rooms, strict=True):
                keys, values, bias = prefix.row(row // heads, row % heads)
                added = room - len(keys)
                bias = keys.new_zeros(len(keys), dtype=torch.float32) if bias is None else bias
                merged.append(
                    Merged(
                        torch.cat([keys, keys.new_zeros(added, keys.shape[1])]),
                        torch.cat([values, values.new_zeros(added, values.shape[1])]),
                        torch.cat([bias, bias.new_full((added,), HIDDEN)]),
                    )
                )
            self.prefix = pack_merged(
                [merged[start : start + heads] for start in range(0, len(merged), heads)]
            )
            self.entries = self.entries.widened(max(rooms))

    def lengths(self) -> Tensor:
        counts = self.entries.used.sum(dim=-1)
        return counts.view(self.prefix.batch, self.prefix.kv_heads)

    def tensors(self) -> list[Tensor]:
        return [*self.prefix.tensors(), *self.entries.tensors().values(), self.capacity]

    def select_rows(self, indices: list[int]) -> SlotStore:
        heads = self.prefix.kv_heads
        rows = [b * heads + head for b in indices for head in range(heads)]
        chosen = copy.copy(self)
        on_device = torch.tensor(rows, device=self.prefix.keys.device)
        chosen.entries = self.entries.rows(on_device)
        chosen.limits = [self.limits[row] for row in rows]
        chosen.bounds = [self.bounds[row] for row in rows]
        chosen.capacity = self.capacity[on_device]
        # copied, also for the same batch: beams that share a past go different ways from here
        chosen._pack([self.prefix.host_rows[row][1] for row in rows], rows)
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> SlotStore:
        return self.select_rows(list(range(self.prefix.batch)))
