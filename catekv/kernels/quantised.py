"""A ragged prefix in eight or four bits; decode attention reads the codes themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.codes import (
    GROUP,
    RESIDUAL,
    coded_entries,
    dequantise,
    dequantise_keys,
    dequantise_values,
    quantise,
    quantise_keys,
    quantise_values,
)
from catekv.kernels.ragged import Bucket, RaggedPrefix, storage_bytes
from catekv.kernels.workspace import Workspace


@dataclass(frozen=True)
class Codes:
    """Keys or values of all rows behind each other.

    ``numbers`` are int8 or float8_e4m3fn [slots, dim] with float32 ``scales`` [slots, 1], or uint8
    [slots, ceil(dim / 2)] with float16 ``scales`` [slots / GROUP, dim, 2] (keys) or [slots, 2, 2]
    (values), see :mod:`catekv.kernels.codes`.
    """

    numbers: Tensor
    scales: Tensor


@dataclass(frozen=True, eq=False)
class QuantisedPrefix:
    """What a :class:`RaggedPrefix` says, in fewer bits; immutable like it.

    The first ``coded_entries(length)`` entries of a row are codes (all of them, in eight bits), the
    others lie in ``residual``. A row's codes and a row's residual start at slots of their own; the
    first of a row's four-bit codes is a multiple of GROUP.

    Attributes:
        form: ``int8``, ``fp8`` or ``int4``.
        plan: the same prefix without keys and values: offsets, lengths, biases, buckets, and the
            model's number type.
        keys, values: the codes.
        residual: keys and values [slots, dim] of the entries that are not quantised; None: none.
        places: int64 [2, batch, kv_heads], the first slot of each row's codes and of its residual;
            None where both are ``plan.offsets`` (eight bits).
        host_places: the same in (batch, head) order, for the host.
    """

    form: str
    plan: RaggedPrefix
    keys: Codes
    values: Codes
    residual: tuple[Tensor, Tensor] | None = None
    places: Tensor | None = None
    host_places: tuple[tuple[int, int], ...] = ()

    @property
    def batch(self) -> int:
        return self.plan.batch

    @property
    def kv_heads(self) -> int:
        return self.plan.kv_heads

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return self.plan.buckets

    @property
    def slots(self) -> int:
        """Entries stored in all rows together, as codes or not."""
        rest = 0 if self.residual is None else len(self.residual[0])
        return len(self.keys.numbers) + rest

    @cached_property
    def _row_of_block(self) -> dict[tuple[int, int], int]:
        """A logical row of every (offset, length)."""
        return {row: index for index, row in enumerate(self.plan.host_rows)}

    def named_tensors(self) -> dict[str, Tensor]:
        """Codes, scales and residual: what grows with the entries."""
        own = {
            "keys": self.keys.numbers,
            "values": self.values.numbers,
            "key_scales": self.keys.scales,
            "value_scales": self.values.scales,
        }
        if self.residual is not None:
            own["residual_keys"], own["residual_values"] = self.residual
        return own

    def tensors(self) -> list[Tensor]:
        """Every tensor whose storage this prefix holds."""
        own = [*self.named_tensors().values(), *self.plan.tensors()]
        return own if self.places is None else [*own, self.places]

    def nbytes(self) -> int:
        return storage_bytes(self.tensors())

    def row(self, batch: int, head: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of one row in float32, which is the definition, and its bias."""
        index = batch * self.kv_heads + head
        offset, length = self.plan.host_rows[index]
        keys, values = self._block(index, 1, length, torch.float32, None)
        bias = self.plan.bias
        return keys[0], values[0], None if bias is None else bias[offset : offset + length]

    def read(
        self, bucket: Bucket, workspace: Workspace | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values [rows, length, dim] in the model's type, and additive logits [rows, length]
        or None of a bucket: the torch path unpacks one bucket at a time, into scratch memory."""
        rows, length = bucket.query_rows.shape[0], bucket.length
        bias = self.plan.bias
        if bucket.start is None:
            return self._gathered(bucket)
        if bias is not None:
            bias = bias[bucket.start : bucket.start + rows * length].view(rows, length)
        index = self._row_of_block[bucket.start, length]
        keys, values = self._block(index, rows, length, self.plan.keys.dtype, workspace)
        return keys, values, bias

    def _block(
        self, index: int, rows: int, length: int, kind: torch.dtype, workspace: Workspace | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, length, dim] of rows of one length that lie behind each other,
        from the logical row ``index`` on."""
        scratch = Workspace() if workspace is None else workspace
        whole = [
            scratch.take(name, (rows, length, like.shape[-1]), kind, like.device)
            for name, like in (
                ("dequantised keys", self.plan.keys),
                ("dequantised values", self.plan.values),
            )
        ]
        if self.residual is None:
            start = self.plan.host_rows[index][0]
            part = slice(start, start + rows * length)
            for codes, out in zip((self.keys, self.values), whole, strict=True):
                numbers, scales = (x[part].unflatten(0, (rows, length)) for x in _both(codes))
                dequantise(numbers, scales, out)
            return whole[0], whole[1]
        first, rest = self.host_places[index]
        coded = coded_entries(length)
        left = length - coded
        for part_, out in zip(self.residual, whole, strict=True):
            out[:, coded:] = part_[rest : rest + rows * left].unflatten(0, (rows, left))
        if coded:
            part = slice(first, first + rows * coded)
            groups = slice(first // GROUP, (first + rows * coded) // GROUP)
            grouped = (rows, coded // GROUP, GROUP)
            dequantise_keys(
                self.keys.numbers[part].unflatten(0, grouped),
                self.keys.scales[groups].unflatten(0, grouped[:2])[:, :, None],
                whole[0][:, :coded].unflatten(1, grouped[1:]),
            )
            numbers, scales = (x[part].unflatten(0, (rows, coded)) for x in _both(self.values))
            dequantise_values(numbers, scales, whole[1][:, :coded])
        return whole[0], whole[1]

    def _gathered(self, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of different lengths, padded to the longest; as :meth:`read`."""
        assert bucket.offsets is not None
        assert bucket.lengths is not None
        kind, device = self.plan.keys.dtype, self.plan.keys.device
        position = torch.arange(bucket.length, device=device)
        inside = position < bucket.lengths[:, None]
        slot = (bucket.offsets[:, None] + position).clamp_(max=self.slots - 1)
        bias = torch.zeros(inside.shape, dtype=torch.float32, device=device)
        if self.plan.bias is not None:
            bias = self.plan.bias[slot]
        bias = bias.masked_fill(~inside, torch.finfo(torch.float32).min)
        dims = [like.shape[-1] for like in (self.plan.keys, self.plan.values)]
        whole = [torch.empty(*slot.shape, dim, dtype=kind, device=device) for dim in dims]
        if self.residual is None:
            for codes, out in zip((self.keys, self.values), whole, strict=True):
                dequantise(_at(codes.numbers, slot), codes.scales[slot], out)
            return whole[0], whole[1], bias
        assert self.places is not None
        first, rest = self.places.flatten(1)[:, bucket.query_rows[:, 0], None]
        coded = (bucket.lengths[:, None] - RESIDUAL).clamp_(min=0) // GROUP * GROUP
        if len(self.keys.numbers):
            place = (first + position).clamp_(max=len(self.keys.numbers) - 1)
            keys, values = self.keys, self.values
            dequantise_keys(keys.numbers[place], keys.scales[place // GROUP], whole[0])
            dequantise_values(values.numbers[place], values.scales[place], whole[1])
        place = (rest + position - coded).clamp_(min=0, max=len(self.residual[0]) - 1)
        exact = (position >= coded)[..., None]
        whole = [
            torch.where(exact, part[place], out)
            for part, out in zip(self.residual, whole, strict=True)
        ]
        return whole[0], whole[1], bias

    def dequantised(self) -> RaggedPrefix:
        """The same prefix in the model's type, for readers of a part of it."""
        plan = self.plan
        slots = max((offset + length for offset, length in plan.host_rows), default=0)
        keys, values = (like.new_zeros(slots, like.shape[-1]) for like in (plan.keys, plan.values))
        for index, (offset, length) in enumerate(plan.host_rows):
            own = self._block(index, 1, length, plan.keys.dtype, None)
            keys[offset : offset + length], values[offset : offset + length] = own[0][0], own[1][0]
        return dataclasses.replace(plan, keys=keys, values=values)

    def select_rows(self, indices: Sequence[int]) -> QuantisedPrefix:
        """The prefix of another batch made of these batch entries; codes are shared."""
        plan = self.plan.select_rows(indices)
        if plan is self.plan:
            return self
        heads = self.kv_heads
        own = self.host_places
        places = tuple(place for b in indices for place in own[b * heads : (b + 1) * heads])
        return dataclasses.replace(
            self, plan=plan, places=_table(places, plan) if own else None, host_places=places
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantisedPrefix:
        return self


def quantised(prefix: RaggedPrefix, form: str) -> QuantisedPrefix:
    """A prefix in ``int8``, ``fp8`` or ``int4``; its keys and values are not referred to."""
    keys, values = prefix.keys, prefix.values
    plan = dataclasses.replace(prefix, keys=keys[:0].clone(), values=values[:0].clone())
    if form != "int4":
        return QuantisedPrefix(
            form, plan, Codes(*quantise(keys, form)), Codes(*quantise(values, form))
        )
    # rows as they lie in storage; beams may share one
    stored = sorted(set(prefix.host_rows))
    places, first, rest = {}, 0, 0
    coded, exact = [], []
    for offset, length in stored:
        count = coded_entries(length)
        places[offset, length] = (first, rest)
        coded.append(slice(offset, offset + count))
        exact.append(slice(offset + count, offset + length))
        first, rest = first + count, rest + length - count
    host = tuple(places[row] for row in prefix.host_rows)
    left_keys, left_values = (
        torch.cat([entries[part] for part in exact]) for entries in (keys, values)
    )
    return QuantisedPrefix(
        form,
        plan,
        _row_by_row(quantise_keys, keys, coded),
        _row_by_row(quantise_values, values, coded),
        (left_keys, left_values),
        _table(host, plan),
        host,
    )


def quantised_from(
    form: str,
    plan: RaggedPrefix,
    tensors: dict[str, Tensor],
    places: Sequence[Sequence[int]],
) -> QuantisedPrefix:
    """A prefix from its parts as they were saved.

    Args:
        tensors: by the names that :meth:`QuantisedPrefix.named_tensors` gives them.
        places: as ``host_places``; empty in eight bits.
    """
    host = tuple((int(first), int(rest)) for first, rest in places)
    return QuantisedPrefix(
        form,
        plan,
        Codes(tensors["keys"], tensors["key_scales"]),
        Codes(tensors["values"], tensors["value_scales"]),
        (tensors["residual_keys"], tensors["residual_values"]) if host else None,
        _table(host, plan) if host else None,
        host,
    )


def _row_by_row(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], entries: Tensor, rows: Sequence[slice]
) -> Codes:
    """Codes of these ranges of slots; no second copy of all entries is made."""
    numbers, scales = zip(*(function(entries[row]) for row in rows), strict=True)
    return Codes(torch.cat(numbers), torch.cat(scales))


def _both(codes: Codes) -> tuple[Tensor, Tensor]:
    return codes.numbers, codes.scales


def _at(numbers: Tensor, slot: Tensor) -> Tensor:
    """Entries of eight bits by their slots; torch indexes no float8."""
    return numbers.view(torch.uint8)[slot].view(numbers.dtype)


def _table(places: Sequence[tuple[int, int]], plan: RaggedPrefix) -> Tensor:
    table = torch.tensor(places, dtype=torch.int64, device=plan.keys.device)
    return table.T.reshape(2, plan.batch, plan.kv_heads).contiguous()
