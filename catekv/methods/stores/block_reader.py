"""A store that keeps the whole prefix and reads the best pages of it at every step."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv import kernels
from catekv.kernels.page_bounds import best_first
from catekv.kernels.ragged import BlockList, RaggedPrefix, from_rows
from catekv.kernels.workspace import Workspace
from catekv.methods.stores.base import DecodeStore

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Reading:
    """How one row is read: the ``top`` best pages of ``page`` entries, and the row's ``always``
    last pages besides."""

    page: int
    top: int
    always: int = 0

    def saves(self, length: int) -> bool:
        """Whether a row of ``length`` entries is then not read whole."""
        return self.top + self.always < -(-length // self.page)


class BlockReader(DecodeStore):
    """Every step of one token reads the best pages of some rows, and all of the other rows.

    A forward of several tokens (a question) reads everything. New tokens stay in the tail, which is
    always read whole. Nothing waits for the device.

    Args:
        prefix: all rows.
        readings: one per row in (batch, head) order; None: read the row whole.
        tables: what :meth:`scores` needs of the rows with a reading, ``[scored rows, ...]`` each.
    """

    capturable = True
    padded_from = 2

    def __init__(
        self,
        prefix: RaggedPrefix,
        readings: Sequence[Reading | None],
        tables: dict[str, Tensor],
    ):
        self.prefix = prefix
        self.readings = tuple(readings)
        self.tables = tables
        device = prefix.keys.device
        scored = [(row, reading) for row, reading in enumerate(readings) if reading is not None]
        lengths = [length for _, length in prefix.host_rows]
        sizes = {reading.page for _, reading in scored}
        self.mixed = len(sizes) > 1
        #: entries per block of the list: a page if all rows have the same, else one entry
        self.size = 1 if self.mixed else max(sizes, default=1)
        taken = [reading.top + reading.always for _, reading in scored]
        blocks = [-(-length // self.size) for length in lengths]
        for (row, reading), count in zip(scored, taken, strict=True):
            blocks[row] = count * reading.page if self.mixed else count
        capacity = max(blocks, default=0)
        every = torch.arange(capacity, dtype=torch.int32, device=device)
        self.indices = every.expand(len(lengths), capacity).contiguous()
        self.counts = torch.tensor(blocks, dtype=torch.int32, device=device)
        self.rows = torch.tensor([row for row, _ in scored], dtype=torch.int64, device=device)
        self.most = max(taken, default=0)
        self.taken = torch.tensor(taken, dtype=torch.int64, device=device)[:, None]
        self.pages = torch.tensor([reading.page for _, reading in scored], device=device)[:, None]
        self.row_lengths = torch.tensor([lengths[row] for row, _ in scored], device=device)[:, None]
        counts = [-(-lengths[row] // reading.page) for row, reading in scored]
        # the tables of a batch that lost its longest row have pages that no row has
        page = torch.arange(self.pages_of(tables), device=device)
        stop = torch.tensor(counts, device=device)[:, None]
        always = torch.tensor([reading.always for _, reading in scored], device=device)[:, None]
        #: bool [scored rows, pages]: pages that do not exist, and pages that are always read
        self.missing = page >= stop
        self.fixed = ~self.missing & (page >= stop - always)

    @staticmethod
    @abc.abstractmethod
    def pages_of(tables: dict[str, Tensor]) -> int:
        """Pages per row in the tables."""

    @abc.abstractmethod
    def scores(self, queries: Tensor, scaling: float) -> Tensor:
        """Scores of the pages, float32 [scored rows, pages]; pages that a row does not have may
        get any finite number.

        Args:
            queries: [scored rows, group, head_dim].
        """

    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        # of a batch, the rows that are left may all be read whole
        if queries.shape[2] != 1 or not self.most:
            return self.prefix, None
        rows = len(self.readings)
        grouped = queries.reshape(rows, -1, queries.shape[-1]).index_select(0, self.rows)
        scores = self.scores(grouped, scaling)
        scores = scores.masked_fill(self.missing, -torch.inf).masked_fill(self.fixed, torch.inf)
        best = best_first(scores, self.most)
        indices, counts = self.indices.clone(), self.counts
        if not self.mixed:
            indices[:, : self.most].index_copy_(0, self.rows, best.to(torch.int32))
            return self.prefix, BlockList(indices, counts, self.size)
        inner = torch.arange(int(self.widest), device=best.device)
        entries = best[..., None] * self.pages[..., None] + inner
        rank = torch.arange(self.most, device=best.device)
        wanted = (rank < self.taken)[..., None] & (inner < self.pages[..., None])
        wanted = (wanted & (entries < self.row_lengths[..., None])).flatten(1)
        front = (~wanted).to(torch.uint8).sort(dim=-1, stable=True).indices
        entries = entries.flatten(1).gather(1, front)[:, : indices.shape[1]].to(torch.int32)
        indices[:, : entries.shape[1]].index_copy_(0, self.rows, entries)
        counts = counts.index_copy(0, self.rows, wanted.sum(dim=-1).to(torch.int32))
        return self.prefix, BlockList(indices, counts, 1)

    @property
    def widest(self) -> int:
        """Entries of the largest page."""
        return max(reading.page for reading in self.readings if reading is not None)

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        own = [
            self.indices,
            self.counts,
            self.rows,
            self.taken,
            self.pages,
            self.row_lengths,
            self.missing,
            self.fixed,
        ]
        return self.prefix.tensors() + own + list(self.tables.values())

    def select_rows(self, indices: list[int]) -> Self:
        prefix = self.prefix.select_rows(indices)
        if prefix is self.prefix:
            return self
        heads = self.prefix.kv_heads
        order = [b * heads + head for b in indices for head in range(heads)]
        place = {row: number for number, row in enumerate(self.rows.tolist())}
        chosen = [place[row] for row in order if row in place]
        where = torch.tensor(chosen, dtype=torch.int64, device=self.rows.device)
        # normal tensors even within inference mode: some are written into later
        with torch.inference_mode(False), torch.no_grad():
            tables = {name: table.index_select(0, where) for name, table in self.tables.items()}
        return type(self)(prefix, [self.readings[row] for row in order], tables)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # immutable: forks share it
        return self


def row_bounds(prefix: RaggedPrefix, rows: Sequence[int], page: int) -> kernels.PageBounds:
    """Smallest and largest keys of the pages of some rows; each counts as a sequence of its own
    with one KV head."""
    chosen = [prefix.host_rows[row] for row in rows]
    return kernels.page_bounds(from_rows(prefix.keys, prefix.values, None, chosen, 1), page)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix product with a float32 result, whatever the dtype of the factors."""
    if left.is_cuda and left.dtype in (torch.float16, torch.bfloat16):
        return torch.bmm(left, right, out_dtype=torch.float32)
    dtype = torch.promote_types(left.dtype, torch.float32)
    return torch.bmm(left.to(dtype), right.to(dtype)).float()
