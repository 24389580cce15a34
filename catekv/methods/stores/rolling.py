"""First and most recent entries that move on with every new token (StreamingLLM, DuoAttention).

Nothing is copied when the oldest recent entry goes: a row lies in storage as its recent entries,
oldest first, and then its sinks, so that dropping the oldest is a view that starts later. New
tokens stay in the tail until enough of them have come; then every row is laid out anew.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.ragged import RaggedPrefix, from_rows
from catekv.methods.stores.base import WholePrefix
from catekv.models.rotation import Rotation

#: New tokens after which rows are laid out anew: rarely enough that copying costs little beside
#: the reads of so many steps.
FOLD = 128


class RollingStore(WholePrefix):
    """Rows that keep their sinks and their most recent tokens, new ones included.

    A forward attends to what a row keeps of the tokens before it, and to its own tokens. Rows
    without a capacity keep everything.

    Args:
        prefix: the rows after prefill, in prompt order, without biases.
        capacities: entries each row may keep; None: all.
        sinks: first tokens of a sequence that stay.
        seen: tokens of every sequence so far, without padding.
        fold: new tokens after which rows are laid out anew, or fewer; the same in all layers, so
            that their tails stay equally long, and at most the recent tokens that any row may keep.
            None: never, for rows without capacities.
        rotation: turn the sinks so that they seem to lie just before the recent tokens, as if the
            tokens between them had never been; None: keys keep their positions.
    """

    plain_logits = False

    def __init__(
        self,
        prefix: RaggedPrefix,
        capacities: Sequence[int | None],
        sinks: int,
        seen: Sequence[int],
        fold: int | None,
        rotation: Rotation | None = None,
    ):
        self.heads = prefix.kv_heads
        self.capacities = list(capacities)
        self.sinks = sinks
        self.seen = list(seen)
        self.pending = [0] * prefix.batch
        self.fold = None if fold is None else max(1, min(FOLD, fold))
        self.rotation = rotation
        rows = [prefix.row(*divmod(row, self.heads)) for row in range(len(self.capacities))]
        self._lay_out([(keys, values) for keys, values, _ in rows])

    def _lay_out(self, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Store rows, given in the order of their tokens."""
        self.first = [min(self.sinks, len(keys)) for keys, _ in rows]
        turned = [
            [torch.cat([part[first:], part[:first]]) for part in row]
            for row, first in zip(rows, self.first, strict=True)
        ]
        # the sinks are written to at every step, within and outside of inference mode
        with torch.inference_mode(False), torch.no_grad():
            self.keys = torch.cat([keys for keys, _ in turned]).clone()
            self.values = torch.cat([values for _, values in turned]).clone()
        self.rows, start = [], 0
        for keys, _ in turned:
            self.rows.append((start, len(keys)))
            start += len(keys)
        sinks = [keys[:first] for (keys, _), first in zip(rows, self.first, strict=True)]
        self.original_sinks = sinks if self.rotation is not None else []
        self._show()

    def dropped(self, row: int) -> int:
        """Entries of a row that new tokens in the tail have driven out."""
        capacity, length = self.capacities[row], self.rows[row][1]
        if capacity is None:
            return 0
        return max(0, length + self.pending[row // self.heads] - capacity)

    def _show(self) -> None:
        """Make the prefix that the next forward reads."""
        dropped = [self.dropped(row) for row in range(len(self.rows))]
        rows = [(start + gone, length - gone) for (start, length), gone in zip(
            self.rows, dropped, strict=True
        )]  # fmt: skip
        self.prefix = from_rows(self.keys, self.values, None, rows, self.heads)
        if self.rotation is None or not sum(self.first):
            return
        device = self.keys.device
        slots: list[int] = []
        gaps: list[int] = []
        for row, ((start, length), first) in enumerate(zip(self.rows, self.first, strict=True)):
            slots += range(start + length - first, start + length)
            # tokens between the sinks and the oldest recent entry
            gaps += [self.seen[row // self.heads] - length + dropped[row]] * first
        plain = self.rotation.unrotate(
            torch.cat(self.original_sinks), torch.zeros(len(slots), device=device)
        )
        turned = self.rotation.rotate(plain, torch.tensor(gaps, device=device))
        self.keys.index_copy_(0, torch.tensor(slots, device=device), turned)

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        batch, _, tail, _ = keys.shape
        self.pending = [tail] * batch if visible is None else visible.sum(dim=-1).tolist()
        if self.fold is None or max(self.pending) < self.fold:
            self._show()
            return 0
        rows = []
        for row, capacity in enumerate(self.capacities):
            b, head = divmod(row, self.heads)
            shown = slice(None) if visible is None else visible[b]
            new = (keys[b, head][shown], values[b, head][shown])
            rows.append(self._extended(row, new, capacity))
        self.seen = [before + more for before, more in zip(self.seen, self.pending, strict=True)]
        self.pending = [0] * batch
        self._lay_out(rows)
        return tail

    def _extended(
        self, row: int, new: tuple[Tensor, Tensor], capacity: int | None
    ) -> tuple[Tensor, Tensor]:
        """What a row keeps of its entries and of new ones, in the order of their tokens."""
        start, length = self.rows[row]
        middle = start + length - self.first[row]
        parts = []
        for storage, added in zip((self.keys, self.values), new, strict=True):
            sinks = storage[middle : start + length]
            if storage is self.keys and self.rotation is not None:
                sinks = self.original_sinks[row]
            entries = torch.cat([sinks, storage[start:middle], added.to(storage.dtype)])
            if capacity is not None and len(entries) > capacity:
                first = min(self.sinks, capacity)
                last = len(entries) - (capacity - first)
                entries = torch.cat([entries[:first], entries[last:]])
            parts.append(entries)
        return parts[0], parts[1]

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        return [*self.prefix.tensors(), *self.original_sinks]

    def select_rows(self, indices: list[int]) -> RollingStore:
        chosen = copy.copy(self)
        order = [b * self.heads + head for b in indices for head in range(self.heads)]
        for name in ("rows", "first", "capacities", "original_sinks"):
            given = getattr(self, name)
            setattr(chosen, name, [given[row] for row in order] if given else [])
        chosen.seen = [self.seen[b] for b in indices]
        chosen.pending = [self.pending[b] for b in indices]
        if self.rotation is None:
            chosen._show()
            return chosen
        # the sinks of every row are written to, so no two rows may share them
        with torch.inference_mode(False), torch.no_grad():
            parts = [slice(start, start + length) for start, length in chosen.rows]
            chosen.keys = torch.cat([self.keys[part] for part in parts]).clone()
            chosen.values = torch.cat([self.values[part] for part in parts]).clone()
        starts = [0]
        for _, length in chosen.rows:
            starts.append(starts[-1] + length)
        chosen.rows = [(at, length) for at, (_, length) in zip(starts, chosen.rows, strict=False)]
        chosen._show()
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> RollingStore:
        return self.select_rows(list(range(len(self.pending))))
