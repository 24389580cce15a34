"""The passive tier of one sequence: entries in host memory or in a memory-mapped file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.atskv.lsh import LshIndex


@dataclass(frozen=True)
class PassivePlace:
    """Where passive entries lie, and how many fit.

    Attributes:
        folder: of memory-mapped files, which vanish with the cache; None: host memory (pinned where
            entries come from a CUDA device).
        limit: bytes that the passive entries of one layer (all sequences) may take; None: any.
    """

    folder: str | None = None
    limit: int | None = None

    def check(self, size: int) -> None:
        """Raise ``UserError`` if ``size`` bytes do not fit; nothing has moved then."""
        if self.limit is not None and size > self.limit:
            raise UserError(
                f"the passive tier is full: {size} bytes of one layer do not fit into "
                f"{self.limit}; nothing was lost; raise passive_mib, use passive=file with more "
                "room, or keep more tokens active"
            )

    def hold(self, tensor: Tensor) -> Tensor:
        """A tensor's content in this place. From a CUDA device it may still be on its way."""
        if self.folder is not None:
            return mapped(tensor, self.folder)
        if not tensor.is_cuda:
            return tensor
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return copy.copy_(tensor, non_blocking=True)


def mapped(tensor: Tensor, folder: str) -> Tensor:
    """A copy of a tensor in a memory-mapped file of a folder.

    The file has no name any more when this returns: its space is given back with the tensor, also
    after a crash. Space is reserved before anything is written.

    Raises:
        UserError: the folder cannot be written to, or is full.
    """
    size = tensor.numel() * tensor.element_size()
    if not size:
        return tensor.cpu()
    try:
        os.makedirs(folder, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="catekv-passive-", dir=folder)
        try:
            reserve = getattr(os, "posix_fallocate", None)
            if reserve is None:
                os.truncate(handle, size)
            else:
                reserve(handle, 0, size)
            # outlives inference mode, in which it could not be written to later
            with torch.inference_mode(False), torch.no_grad():
                storage: Any = torch.UntypedStorage.from_file(name, True, size)
                copy = torch.empty(0, dtype=tensor.dtype).set_(storage).view(tensor.shape)
                return copy.copy_(tensor)
        finally:
            os.close(handle)
            os.unlink(name)
    except OSError as error:
        raise UserError(
            f"the passive tier cannot grow by {size} bytes in {folder}: {error.strerror}; nothing "
            "was lost; make room or name another passive_folder"
        ) from error


@dataclass(frozen=True, eq=False)
class Passive:
    """Passive entries of one sequence.

    Attributes:
        columns: int64 [entries], ascending, the prompt columns they come from.
        index: their keys [kv_heads, entries, head_dim] by bucket.
        values: [kv_heads, entries, value_dim].
        arrived: set while keys and values are copied from a CUDA device beside the computation.
    """

    columns: Tensor
    index: LshIndex
    values: Tensor
    arrived: torch.cuda.Event | None = None

    @classmethod
    def build(
        cls,
        columns: Tensor,
        keys: Tensor,
        values: Tensor,
        codes: Tensor,
        place: PassivePlace | None = None,
    ) -> Passive:
        """Put entries into the passive tier.

        Args:
            columns, codes: on the host; codes [kv_heads, entries].
            keys, values: [kv_heads, entries, dim] on any device.
        """
        place = place or PassivePlace()
        if bool((columns[1:] < columns[:-1]).any()):
            order = columns.argsort()
            columns, codes = columns[order], codes[:, order]
            keys, values = (x[:, order.to(x.device)] for x in (keys, values))
        held = place.hold(keys), place.hold(values)
        event = None
        if keys.is_cuda and place.folder is None:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(keys.device))
        return cls(columns, LshIndex.build(held[0], codes), held[1], event)

    def wait(self) -> Passive:
        """The same, once all of it is on the host."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self

    def tensors(self) -> list[Tensor]:
        return [self.columns, self.index.keys, self.index.codes, self.index.order, self.values]


def passive_bytes(counts: Sequence[int], keys: Tensor, values: Tensor) -> int:
    """Bytes of passive entries: keys, values, code and place of each, and its column.

    Args:
        counts: entries of every sequence. keys, values: [..., kv_heads, entries, dim], for shape
            and type.
    """
    kv_heads = keys.shape[-3]
    entry = keys.shape[-1] * keys.element_size() + values.shape[-1] * values.element_size() + 16
    return sum(counts) * (kv_heads * entry + 8)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device; on CUDA the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
