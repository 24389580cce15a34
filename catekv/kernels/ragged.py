"""Flat storage for rows of different length: the immutable, compressed part of one layer's cache.

A *row* is one (sequence, KV head) pair. All rows of a layer lie behind each other in one tensor
``[slots, head_dim]``; ``offsets`` and ``lengths`` say where. Nothing is padded: the storage has
exactly as many slots as entries were kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

#: Largest number of buckets a layer is split into, so that a decode step on the torch path stays
#: a handful of operations however many rows there are.
MAX_BUCKETS = 8


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows that one batched matrix product can read.

    ``query_rows`` int64 [stored rows, readers] are the logical rows (``batch * kv_heads + head``)
    that read each stored row; several readers are beams that share storage. Rows of one length are
    neighbours in storage: ``start`` is their first slot and the block is read as a view. Rows of
    different lengths have ``start`` None and are gathered, padded to ``length``. ``in_order`` says
    that the stored rows are all logical rows in their order, so that nothing needs to be looked up.
    """

    length: int
    query_rows: Tensor
    start: int | None
    offsets: Tensor | None = None
    lengths: Tensor | None = None
    in_order: bool = False


@dataclass(frozen=True, eq=False)
class BlockList:
    """Which blocks of every row a decode step reads; block ``i`` of a row is its entries
    ``[i * size, (i + 1) * size)``, as far as the row reaches.

    Attributes:
        indices: int32 [rows, capacity], rows in (batch, head) order; no block twice in a row.
        counts: int32 [rows], how many of a row's indices count.
        size: entries per block.
    """

    indices: Tensor
    counts: Tensor
    size: int

    def tokens(self, row: int, length: int) -> Tensor:
        """Entries that one row of ``length`` entries reads, int64, in the order of the list."""
        listed = self.indices[row, : int(self.counts[row])].long()
        inner = torch.arange(self.size, device=listed.device)
        entries = (listed[:, None] * self.size + inner).flatten()
        return entries[entries < length]


@dataclass(frozen=True, eq=False)
class RaggedPrefix:
    """Keys and values of all rows of one layer; immutable, so forks and beams share it.

    Attributes:
        keys: [slots, head_dim], values: [slots, value_dim], bias: [slots] float32 added to the
            attention logits of merged entries, or None.
        offsets: int64 [batch, kv_heads], first slot of each row (on the device of the keys).
        lengths: int32 [batch, kv_heads], entries of each row (on the device of the keys).
        buckets: the plan of the torch path, made once from the lengths.
        host_rows: (offset, length) of every row in (batch, head) order, for host-side decisions.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None
    offsets: Tensor
    lengths: Tensor
    buckets: tuple[Bucket, ...]
    host_rows: tuple[tuple[int, int], ...]

    @property
    def batch(self) -> int:
        return self.offsets.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.offsets.shape[1]

    @property
    def slots(self) -> int:
        return self.keys.shape[0]

    @cached_property
    def uniform_length(self) -> int | None:
        """The common length if all rows lie behind each other in row order with one length and no
        bias, so that the storage is an ordinary ``[batch, kv_heads, tokens, head_dim]`` tensor."""
        length = self.host_rows[0][1]
        regular = all(row == (i * length, length) for i, row in enumerate(self.host_rows))
        covers = self.slots == length * len(self.host_rows)
        return length if regular and covers and self.bias is None else None

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values as views [batch, kv_heads, tokens, dim]; only for a uniform prefix."""
        return self._dense

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        length = self.uniform_length
        if length is None:
            raise ValueError("only a prefix with one length in every row can be viewed as dense")
        shape = (self.batch, self.kv_heads, length)
        # the sizes by number: of a prefix without entries -1 could be anything
        return (
            self.keys.view(*shape, self.keys.shape[-1]),
            self.values.view(*shape, self.values.shape[-1]),
        )

    def row(self, batch: int, head: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and bias of one row, as views."""
        start, length = self.host_rows[batch * self.kv_heads + head]
        part = slice(start, start + length)
        return self.keys[part], self.values[part], None if self.bias is None else self.bias[part]

    def tensors(self) -> list[Tensor]:
        """Every tensor whose storage this prefix holds."""
        own = [self.keys, self.values, self.offsets, self.lengths]
        if self.bias is not None:
            own.append(self.bias)
        for bucket in self.buckets:
            own += [t for t in (bucket.query_rows, bucket.offsets, bucket.lengths) if t is not None]
        return own

    def nbytes(self) -> int:
        """Allocated bytes, counted from the storages (a view counts as the whole it belongs to)."""
        return storage_bytes(self.tensors())

    def select_rows(self, indices: Sequence[int]) -> RaggedPrefix:
        """The prefix of another batch made of these batch entries; storage is shared, never moved.

        Beams of one prompt read the same rows, so reordering among them returns ``self``.
        """
        heads = self.kv_heads
        rows = tuple(row for b in indices for row in self.host_rows[b * heads : (b + 1) * heads])
        if rows == self.host_rows:
            return self
        return from_rows(self.keys, self.values, self.bias, rows, heads)

    def to(self, device: torch.device | str) -> RaggedPrefix:
        """The same prefix on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return from_rows(
            self.keys.to(device), self.values.to(device), bias, self.host_rows, self.kv_heads
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RaggedPrefix:
        # Immutable: a copied cache (the usual recipe for reusing a prompt) shares the storage.
        return self


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[(tensor.device, storage.data_ptr())] = storage.nbytes()
    return sum(found.values())


def _plan(rows: Sequence[tuple[int, int]], device: torch.device) -> tuple[Bucket, ...]:
    """Group rows into at most :data:`MAX_BUCKETS` buckets, without padding where lengths agree."""
    readers: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(rows):
        readers.setdefault(row, []).append(index)
    # Blocks of equally long, neighbouring rows with equally many readers: views of the storage.
    # Empty rows share one offset with their neighbour, so they are told apart by their readers.
    blocks: list[list[tuple[int, int]]] = []
    for row in sorted(readers):
        last = blocks[-1][-1] if blocks else None
        joins = (
            last is not None
            and last[1] == row[1]
            and last[0] + last[1] == row[0]
            and len(readers[last]) == len(readers[row])
        )
        if joins:
            blocks[-1].append(row)
        else:
            blocks.append([row])

    def view(block: list[tuple[int, int]]) -> Bucket:
        indices = [readers[row] for row in block]
        in_order = indices == [[index] for index in range(len(rows))]
        table = torch.tensor(indices, device=device)
        return Bucket(block[0][1], table, block[0][0], in_order=in_order)

    if len(blocks) <= MAX_BUCKETS:
        return tuple(view(block) for block in blocks)
    # Too many: the largest blocks stay views, the others are gathered in groups of similar length.
    blocks.sort(key=lambda block: -len(block) * block[0][1])
    buckets = [view(block) for block in blocks[: MAX_BUCKETS // 2]]
    rest = sorted(
        ((row[1], row[0], i) for block in blocks[MAX_BUCKETS // 2 :] for row in block
         for i in readers[row]),
        reverse=True,
    )  # fmt: skip
    for group in _cut(rest, MAX_BUCKETS - len(buckets)):
        lengths, offsets, indices = zip(*group, strict=True)
        buckets.append(
            Bucket(
                max(lengths),
                torch.tensor(indices, device=device)[:, None],
                None,
                torch.tensor(offsets, device=device),
                torch.tensor(lengths, device=device),
            )
        )
    return tuple(buckets)


#: Positions at which :func:`_cut` may cut; bounds its work for large batches.
_CUT_POSITIONS = 48


def _cut(rows: list[tuple[int, int, int]], parts: int) -> list[list[tuple[int, int, int]]]:
    """Cut rows, longest first, into at most ``parts`` groups with little padding.

    Dynamic programming over (groups, cut position): exact for up to :data:`_CUT_POSITIONS` rows,
    for more rows cuts are only tried at evenly spaced ones.
    """
    steps = min(len(rows), _CUT_POSITIONS)
    positions = [round(step * len(rows) / steps) for step in range(steps + 1)]
    best = [[0.0] + [float("inf")] * steps for _ in range(parts + 1)]
    choice = [[0] * (steps + 1) for _ in range(parts + 1)]
    for part in range(1, parts + 1):
        for stop in range(1, steps + 1):
            for start in range(stop):
                # a group costs what it is padded to: its longest row times its rows
                size = positions[stop] - positions[start]
                cost = best[part - 1][start] + rows[positions[start]][0] * size
                if cost < best[part][stop]:
                    best[part][stop], choice[part][stop] = cost, start
    groups = []
    stop = steps
    for part in range(parts, 0, -1):
        if stop:
            start = choice[part][stop]
            groups.append(rows[positions[start] : positions[stop]])
            stop = start
    return groups


def from_rows(
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Sequence[tuple[int, int]],
    kv_heads: int,
) -> RaggedPrefix:
    """A prefix over given flat storage; ``rows`` holds (offset, length) in (batch, head) order."""
    table = torch.tensor(rows, dtype=torch.int64, device=keys.device).view(-1, kv_heads, 2)
    return RaggedPrefix(
        keys,
        values,
        bias,
        table[..., 0].contiguous(),
        table[..., 1].to(torch.int32).contiguous(),
        _plan(rows, keys.device),
        tuple((int(offset), int(length)) for offset, length in rows),
    )


def storage_order(lengths: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Order of the rows in storage (equal lengths together) and each row's (offset, length)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    rows = [(0, 0)] * len(lengths)
    start = 0
    for row in order:
        rows[row] = (start, lengths[row])
        start += lengths[row]
    return order, rows


def concatenate(prefixes: Sequence[RaggedPrefix]) -> RaggedPrefix:
    """One prefix whose batch is that of all the given ones behind each other (copied once)."""
    heads = prefixes[0].kv_heads
    entries = [
        prefix.row(batch, head)
        for prefix in prefixes
        for batch in range(prefix.batch)
        for head in range(heads)
    ]
    order, rows = storage_order([keys.shape[0] for keys, _, _ in entries])
    bias = None
    if any(prefix.bias is not None for prefix in prefixes):
        bias = torch.cat(
            [
                keys.new_zeros(keys.shape[0], dtype=torch.float32) if own is None else own
                for keys, _, own in (entries[i] for i in order)
            ]
        )
    keys = torch.cat([entries[i][0] for i in order])
    values = torch.cat([entries[i][1] for i in order])
    return from_rows(keys, values, bias, rows, heads)


@dataclass(frozen=True)
class Merged:
    """Entries of one row that replace original tokens: keys, values [entries, head_dim] and an
    optional additive logit ``bias`` [entries]."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None
