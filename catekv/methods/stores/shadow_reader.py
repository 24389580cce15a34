"""Low-rank keys on the device, values on the host, both brought in by chunks (ShadowKV)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.ragged import BlockList, RaggedPrefix, from_rows
from catekv.kernels.workspace import Workspace
from catekv.methods.stores.base import DecodeStore
from catekv.methods.stores.host import copy_stream
from catekv.methods.stores.shadow import Shadow, ShadowSettings, make_shadow
from catekv.models.rotation import Rotation


class ShadowReader(DecodeStore):
    """Holds in a prefix of its own what is exact (outliers, local chunks, rows without a shadow)
    and, for every shadowed row, room for the chunks of a step, which every step brings anew: keys
    rebuilt from their low rank and rotated at their positions, values fetched from the host.

    On CUDA the values come over a stream of their own while the keys are rebuilt; the host must
    know which, so that the step waits for the device once. A question of several tokens rebuilds
    and fetches everything for its time.

    Args:
        assembled: the prefix with the room at the end of shadowed rows; changed by every step.
        stored: int64 [batch, kv_heads], tokens of every row.
    """

    # a forward of several tokens reads everything
    padded_from = 2

    def __init__(self, shadow: Shadow, assembled: RaggedPrefix, stored: Tensor):
        self.shadow, self.assembled, self.stored = shadow, assembled, stored
        device = assembled.keys.device
        room = shadow.settings.room
        stops = [sum(assembled.host_rows[row]) for row in shadow.rows]
        starts = torch.tensor(stops, device=device)[:, None] - room
        self.slots = (starts + torch.arange(room, device=device)).flatten()
        self.rows = torch.tensor(shadow.rows, dtype=torch.int64, device=device)
        self.transfer = _Transfer(shadow) if device.type == "cuda" else None

    @classmethod
    def build(
        cls,
        prefix: RaggedPrefix,
        rotation: Rotation,
        shadowed: Sequence[bool],
        settings: ShadowSettings,
    ) -> ShadowReader | None:
        """The store of a prefix, arguments as in :func:`make_shadow`; None if a step would read
        every row whole."""
        rotation = rotation.to(prefix.keys.device)
        made = make_shadow(prefix, rotation, shadowed, settings)
        if made is None:
            return None
        shadow, exact = made
        parts = []
        for row in range(len(prefix.host_rows)):
            keys, values, _ = prefix.row(*divmod(row, prefix.kv_heads))
            if row in exact:
                keys, values = keys[exact[row]], values[exact[row]]
            parts.append((keys, values, settings.room if row in exact else 0))
        return cls(shadow, _joined(parts, prefix.kv_heads), prefix.lengths.long())

    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        if queries.shape[2] != 1:
            return self._everything(), None
        if not self.shadow.rows:
            # of a batch, the rows that are left may all be read whole
            return self.assembled, None
        rows = len(self.assembled.host_rows)
        grouped = queries.reshape(rows, -1, queries.shape[-1]).index_select(0, self.rows)
        chunks = self.shadow.best_chunks(grouped, scaling)
        wanted = (chunks + self.shadow.first_chunk).flatten()
        if self.transfer is not None:
            self.transfer.ask(wanted)
        keys = self.shadow.keys(chunks)
        if self.transfer is None:
            values = self.shadow.values.index_select(0, wanted)
        else:
            values = self.transfer.receive()
        own = self.assembled
        own.keys.index_copy_(0, self.slots, keys.reshape(-1, own.keys.shape[-1]))
        own.values.index_copy_(0, self.slots, values.view(-1, own.values.shape[-1]))
        return own, None

    def _everything(self) -> RaggedPrefix:
        """All tokens of all rows, shadowed ones rebuilt."""
        shadow, own = self.shadow, self.assembled
        place = {row: number for number, row in enumerate(shadow.rows)}
        parts = []
        for row in range(len(own.host_rows)):
            keys, values, _ = own.row(*divmod(row, own.kv_heads))
            if row in place:
                number = place[row]
                exact = len(keys) - shadow.settings.room
                chunks = (~shadow.hidden[number]).nonzero().view(1, -1)
                wanted = (chunks + shadow.first_chunk[number]).flatten().to(shadow.values.device)
                rebuilt = shadow.keys(chunks, slice(number, number + 1))[0]
                fetched = shadow.values.index_select(0, wanted).to(values.device)
                keys = torch.cat([keys[:exact], rebuilt])
                values = torch.cat([values[:exact], fetched.view(-1, values.shape[-1])])
            parts.append((keys, values, 0))
        return _joined(parts, own.kv_heads)

    def lengths(self) -> Tensor:
        return self.stored

    def tensors(self) -> list[Tensor]:
        own = [*self.shadow.tensors(), self.slots, self.rows, self.stored]
        held = [] if self.transfer is None else self.transfer.tensors()
        return own + held + self.assembled.tensors()

    def select_rows(self, indices: list[int]) -> ShadowReader:
        if indices == list(range(self.assembled.batch)):
            return self
        heads = self.assembled.kv_heads
        order = [b * heads + head for b in indices for head in range(heads)]
        place = {row: number for number, row in enumerate(self.shadow.rows)}
        rows = [row for row, old in enumerate(order) if old in place]
        shadow = self.shadow.select([place[order[row]] for row in rows], rows)
        where = torch.tensor(indices, device=self.stored.device)
        return type(self)(shadow, self._copied(order), self.stored.index_select(0, where))

    def __deepcopy__(self, memo: dict[int, Any]) -> ShadowReader:
        # a fork fetches chunks of its own
        order = list(range(len(self.assembled.host_rows)))
        return type(self)(self.shadow, self._copied(order), self.stored)

    def _copied(self, order: Sequence[int]) -> RaggedPrefix:
        own = self.assembled
        rows = [own.row(*divmod(row, own.kv_heads)) for row in order]
        return _joined([(keys, values, 0) for keys, values, _ in rows], own.kv_heads)


def _joined(parts: Sequence[tuple[Tensor, Tensor, int]], heads: int) -> RaggedPrefix:
    """A prefix of new tensors from keys and values of every row and zeros behind them, their number
    given; rows of one length lie together."""
    lengths = [len(keys) + room for keys, _, room in parts]
    rows, start = [(0, 0)] * len(parts), 0
    for row in sorted(range(len(parts)), key=lambda row: -lengths[row]):
        rows[row] = (start, lengths[row])
        start += lengths[row]
    # normal tensors even within inference mode: later steps write into them
    with torch.inference_mode(False), torch.no_grad():
        keys = parts[0][0].new_zeros(start, parts[0][0].shape[-1])
        values = parts[0][1].new_zeros(start, parts[0][1].shape[-1])
        for (row_keys, row_values, _), (first, _) in zip(parts, rows, strict=True):
            keys[first : first + len(row_keys)] = row_keys
            values[first : first + len(row_keys)] = row_values
    return from_rows(keys, values, None, rows, heads)


class _Transfer:
    """Values of chosen chunks from pinned host memory to the device, beside the computation."""

    def __init__(self, shadow: Shadow):
        self.source = shadow.values
        self.device = shadow.bases.device
        count = len(shadow.rows) * shadow.settings.top
        shape = (count, shadow.values.shape[1])
        with torch.inference_mode(False):
            self.wanted = torch.empty(count, dtype=torch.int64, pin_memory=True)
            self.gathered = torch.empty(shape, dtype=self.source.dtype, pin_memory=True)
            self.incoming = torch.empty(shape, dtype=self.source.dtype, device=self.device)
        self.asked = torch.cuda.Event()
        self.done = torch.cuda.Event()

    def ask(self, wanted: Tensor) -> None:
        """Tell the host which chunks are wanted, int64 [count] on the device."""
        self.wanted.copy_(wanted, non_blocking=True)
        self.asked.record(torch.cuda.current_stream(self.device))

    def receive(self) -> Tensor:
        """The values [count, chunk * value_dim], ready for the current stream.

        The buffers are free again when the host gets here: what it waits for lies behind the last
        step's use of them in the same stream.
        """
        self.asked.synchronize()
        torch.index_select(self.source, 0, self.wanted, out=self.gathered)
        side = copy_stream(self.device)
        with torch.cuda.stream(side):
            side.wait_event(self.asked)
            self.incoming.copy_(self.gathered, non_blocking=True)
            self.done.record(side)
        torch.cuda.current_stream(self.device).wait_event(self.done)
        return self.incoming

    def tensors(self) -> list[Tensor]:
        return [self.wanted, self.gathered, self.incoming]
