"""Two places for a layer's context: active entries on the device, passive ones in host memory
or a file (:mod:`catekv.methods.atskv.passive`).

One mask decides for all heads of a sequence. Passive entries lie in an LSH index and come back for
single steps (:meth:`TwoTiers.fetch`) or for good (:meth:`TwoTiers.move`). No entry is ever dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catekv.kernels.ragged import from_rows, storage_bytes
from catekv.methods.atskv.lsh import sign_codes
from catekv.methods.atskv.passive import Passive, PassivePlace, passive_bytes, to_device

#: Logit bias of a slot that holds nothing. Finite: a kernel may multiply it.
HIDDEN = -1e30


class TwoTiers:
    """Active and passive entries of a batch.

    Attributes:
        prefix: what a step attends to: for each row the active entries, then ``slots`` places for
            fetched ones (hidden by their bias while empty). No place where nothing is passive.
        columns: per sequence the prompt columns of the active entries, int64 [active].
        slot_columns: per sequence int64 [kv_heads, active + slots], the column of every place.
        passive: the passive entries per sequence.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        columns: Sequence[Tensor],
        passive: Sequence[Passive],
        projection: Tensor,
        top_k: int,
        place: PassivePlace | None = None,
    ):
        """Lay out the given entries.

        Args:
            keys, values: per sequence the active entries [kv_heads, active, dim].
            columns, passive: as the attributes.
            projection: [bits, head_dim] on the host; top_k: entries to fetch per row and step.
            place: where passive entries lie; None: host memory, as many as there are.
        """
        self.place = place or PassivePlace()
        self.columns, self.passive = list(columns), list(passive)
        self.projection, self.top_k = projection, top_k
        self.slots = [min(top_k, len(tier.columns)) for tier in passive]
        self.shared = False
        self.kv_heads = keys[0].shape[0]
        lengths = [
            len(where) + count for where, count in zip(self.columns, self.slots, strict=True)
        ]
        rows, start = [], 0
        for length in lengths:
            rows += [(start + head * length, length) for head in range(self.kv_heads)]
            start += self.kv_heads * length
        self.prefix = from_rows(
            keys[0].new_zeros(start, keys[0].shape[-1]),
            values[0].new_zeros(start, values[0].shape[-1]),
            torch.zeros(start, device=keys[0].device) if any(self.slots) else None,
            rows,
            self.kv_heads,
        )
        self.slot_columns = []
        for b, where in enumerate(self.columns):
            block_keys, block_values, _ = self.block(b)
            block_keys[:, : len(where)], block_values[:, : len(where)] = keys[b], values[b]
            places = where.new_zeros(self.kv_heads, lengths[b])
            places[:, : len(where)] = where
            self.slot_columns.append(places)
        for b in range(len(self.columns)):
            self._hide(b)

    @classmethod
    def split(
        cls,
        keys: Tensor,
        values: Tensor,
        active: Tensor,
        valid: Tensor,
        projection: Tensor,
        top_k: int,
        place: PassivePlace | None = None,
    ) -> TwoTiers:
        """Split a dense context.

        Args:
            keys, values: [batch, kv_heads, tokens, dim].
            active, valid: bool [batch, tokens]; padding goes nowhere.

        Raises:
            UserError: the passive entries do not fit their place; the dense context is as it was.
        """
        place = place or PassivePlace()
        place.check(passive_bytes((~active & valid).sum(dim=-1).tolist(), keys, values))
        chosen = [row.nonzero().squeeze(-1) for row in active & valid]
        passive = []
        for b, row in enumerate(~active & valid):
            columns = row.nonzero().squeeze(-1)
            resting = keys[b][:, columns]
            codes = sign_codes(resting, projection).cpu()
            passive.append(
                Passive.build(columns.cpu(), resting, values[b][:, columns], codes, place)
            )
        return cls(
            [keys[b][:, columns] for b, columns in enumerate(chosen)],
            [values[b][:, columns] for b, columns in enumerate(chosen)],
            chosen,
            passive,
            projection,
            top_k,
            place,
        )

    def block(self, b: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values [kv_heads, active + slots, dim] and bias [kv_heads, active + slots] of one
        sequence, as views (the bias is made where there is none)."""
        start, length = self.prefix.host_rows[b * self.kv_heads]
        part = slice(start, start + self.kv_heads * length)
        shape = (self.kv_heads, length)
        keys = self.prefix.keys[part].view(*shape, -1)
        values = self.prefix.values[part].view(*shape, -1)
        if self.prefix.bias is None:
            return keys, values, torch.zeros(shape, device=keys.device)
        return keys, values, self.prefix.bias[part].view(shape)

    def _hide(self, b: int) -> None:
        if self.slots[b]:
            self.block(b)[2][:, len(self.columns[b]) :] = HIDDEN

    def fetch(self, queries: Tensor) -> None:
        """Put the passive entries that are most like the queries into the places for them.

        Args:
            queries: [batch, query_heads, query_tokens, head_dim]; an entry counts by its best
                query among those of its KV head that lie in its bucket.
        """
        if not any(self.slots):
            return
        self._own()
        batch, _, _, dim = queries.shape
        asked = queries.reshape(batch, self.kv_heads, -1, dim).float().cpu()
        codes = sign_codes(asked, self.projection)
        device = self.prefix.keys.device
        row = torch.arange(self.kv_heads)[:, None]
        for b, (tier, slots) in enumerate(zip(self.passive, self.slots, strict=True)):
            if not slots:
                continue
            found, _ = tier.wait().index.retrieve(asked[b], codes[b], slots)
            entry = found.clamp(min=0)
            keys, values, bias = self.block(b)
            first = len(self.columns[b])
            keys[:, first:] = to_device(tier.index.keys[row, entry], device)
            values[:, first:] = to_device(tier.values[row, entry], device)
            bias[:, first:] = to_device(torch.where(found < 0, HIDDEN, 0.0), device)
            self.slot_columns[b][:, first:] = to_device(tier.columns[entry], device)

    def move(self, active: Tensor) -> TwoTiers:
        """The tiers after entries changed places; places for fetched ones are empty again.

        Args:
            active: bool [batch, tokens], which of the stored columns are to be active.

        Raises:
            UserError: the passive entries do not fit their place; these tiers are as they were.
        """
        device = self.prefix.keys.device
        resting = self.stored()[:, 0] - torch.tensor(
            [
                int(active[b, columns].sum()) + int(active[b].cpu()[tier.columns].sum())
                for b, (columns, tier) in enumerate(zip(self.columns, self.passive, strict=True))
            ]
        )
        keys, values, _ = self.block(0)
        self.place.check(passive_bytes(resting.tolist(), keys, values))
        all_keys, all_values, all_columns, all_passive = [], [], [], []
        for b, (columns, tier) in enumerate(zip(self.columns, self.passive, strict=True)):
            tier.wait()
            keys, values, _ = self.block(b)
            stays = active[b, columns].nonzero().squeeze(-1)
            leaves = (~active[b, columns]).nonzero().squeeze(-1)
            host = active[b].cpu()[tier.columns]
            returns, rests = host.nonzero().squeeze(-1), (~host).nonzero().squeeze(-1)
            gone = keys[:, leaves]
            all_keys.append(
                torch.cat([keys[:, stays], to_device(tier.index.keys[:, returns], device)], dim=1)
            )
            all_values.append(
                torch.cat([values[:, stays], to_device(tier.values[:, returns], device)], dim=1)
            )
            all_columns.append(
                torch.cat([columns[stays], to_device(tier.columns[returns], device)])
            )
            if not len(leaves) and not len(returns):
                all_passive.append(tier)
                continue
            codes = sign_codes(gone, self.projection).cpu()
            all_passive.append(
                Passive.build(
                    torch.cat([tier.columns[rests], columns[leaves].cpu()]),
                    torch.cat([tier.index.keys[:, rests], gone.cpu()], dim=1),
                    torch.cat([tier.values[:, rests], values[:, leaves].cpu()], dim=1),
                    torch.cat([tier.index.entry_codes()[:, rests], codes], dim=1),
                    self.place,
                )
            )
        return TwoTiers(
            all_keys,
            all_values,
            all_columns,
            all_passive,
            self.projection,
            self.top_k,
            self.place,
        )

    def rearranged(self, indices: Sequence[int]) -> TwoTiers:
        """The tiers of another batch made of these sequences; passive entries are shared."""
        blocks = [self.block(b) for b in indices]
        counts = [len(self.columns[b]) for b in indices]
        return TwoTiers(
            [keys[:, :count] for (keys, _, _), count in zip(blocks, counts, strict=True)],
            [values[:, :count] for (_, values, _), count in zip(blocks, counts, strict=True)],
            [self.columns[b] for b in indices],
            [self.passive[b] for b in indices],
            self.projection,
            self.top_k,
            self.place,
        )

    def share(self) -> TwoTiers:
        """A copy that holds the same storage until one of the two fetches."""
        twin = object.__new__(TwoTiers)
        self.shared = True
        twin.__dict__.update(self.__dict__)
        return twin

    def _own(self) -> None:
        if not self.shared:
            return
        prefix = self.prefix
        assert prefix.bias is not None
        self.prefix = from_rows(
            prefix.keys.clone(),
            prefix.values.clone(),
            prefix.bias.clone(),
            prefix.host_rows,
            self.kv_heads,
        )
        self.slot_columns = [columns.clone() for columns in self.slot_columns]
        self.shared = False

    def stored(self) -> Tensor:
        """Entries per row in both tiers: int64 [batch, kv_heads]."""
        counts = [
            len(columns) + len(tier.columns)
            for columns, tier in zip(self.columns, self.passive, strict=True)
        ]
        return torch.tensor(counts)[:, None].expand(-1, self.kv_heads).clone()

    def device_tensors(self) -> list[Tensor]:
        return [*self.prefix.tensors(), *self.columns, *self.slot_columns]

    def host_tensors(self) -> list[Tensor]:
        return [self.projection, *(tensor for tier in self.passive for tensor in tier.tensors())]

    def nbytes(self) -> tuple[int, int]:
        """Allocated bytes of the active and of the passive tier."""
        return storage_bytes(self.device_tensors()), storage_bytes(self.host_tensors())

    def file_bytes(self) -> int:
        """Bytes of the passive tier that lie in memory-mapped files."""
        if self.place.folder is None:
            return 0
        return storage_bytes([x for tier in self.passive for x in (tier.index.keys, tier.values)])
