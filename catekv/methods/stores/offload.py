"""The prefix in host memory; every step copies it to the device, a layer ahead."""

from __future__ import annotations

import dataclasses
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.kernels.workspace import Workspace
from catekv.methods.stores.base import DecodeStore
from catekv.methods.stores.host import copy_stream, to_host


class OffloadedPrefix(DecodeStore):
    """Keys and values of one layer in host memory (pinned for a CUDA device).

    A step reads the whole prefix over the bus: the device saves memory, not time. On CUDA the next
    layer's prefix is copied while this layer computes, into two buffers that all layers of a cache
    share; which layer comes next is learned from the first step. On the CPU host memory is where
    the computation takes place, and nothing is copied.

    Args:
        device: where the computation takes place.
        keys, values: [slots, dim] in host memory.
        plan: the same prefix on the device with no keys and values, for its lengths and biases.
    """

    plain_logits = False

    def __init__(self, device: torch.device, keys: Tensor, values: Tensor, plan: RaggedPrefix):
        self.device = device
        self.keys, self.values = keys, values
        self.plan = plan
        self._last: RaggedPrefix | None = None

    @classmethod
    def build(cls, prefix: RaggedPrefix) -> OffloadedPrefix:
        """Move a prefix to the host."""
        keys, values = prefix.keys, prefix.values
        plan = dataclasses.replace(prefix, keys=keys[:0].clone(), values=values[:0].clone())
        if keys.is_cuda:
            keys, values = to_host([keys]), to_host([values])
        return cls(prefix.keys.device, keys, values, plan)

    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        if self.device.type != "cuda":
            return self._on_device(self.keys, self.values), None
        if workspace is None:
            copies = (x.to(self.device, non_blocking=True) for x in (self.keys, self.values))
            return dataclasses.replace(self.plan, keys=next(copies), values=next(copies)), None
        ahead = _ahead.get(workspace)
        if ahead is None:
            ahead = _ahead[workspace] = _Prefetch()
        return self._on_device(*ahead.fetch(self, workspace)), None

    def _on_device(self, keys: Tensor, values: Tensor) -> RaggedPrefix:
        """A prefix over these tensors; the same object as long as they are the same."""
        last = self._last
        if (
            last is None
            or last.keys.data_ptr() != keys.data_ptr()
            or last.values.data_ptr() != values.data_ptr()
        ):
            last = self._last = dataclasses.replace(self.plan, keys=keys, values=values)
        return last

    def lengths(self) -> Tensor:
        return self.plan.lengths.long()

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, *self.plan.tensors()]

    def select_rows(self, indices: list[int]) -> OffloadedPrefix:
        plan = self.plan.select_rows(indices)
        return self if plan is self.plan else type(self)(self.device, self.keys, self.values, plan)

    def __deepcopy__(self, memo: dict[int, Any]) -> OffloadedPrefix:
        # the host tensors are immutable and shared; what is on the device belongs to a workspace
        return type(self)(self.device, self.keys, self.values, self.plan)


class _Prefetch:
    """Two device buffers of one cache, filled in turn by a stream of their own."""

    def __init__(self) -> None:
        #: which store was read after which
        self.following: WeakKeyDictionary[OffloadedPrefix, ref[OffloadedPrefix]]
        self.following = WeakKeyDictionary()
        self.previous: ref[OffloadedPrefix] | None = None
        #: what each buffer holds or is being filled with, and the event of its completion
        self.held: list[tuple[ref[OffloadedPrefix], torch.cuda.Event] | None] = [None, None]
        self.slot = 0

    def fetch(self, store: OffloadedPrefix, workspace: Workspace) -> tuple[Tensor, Tensor]:
        """The store's keys and values on the device, ready for the current stream."""
        held = self.held[1 - self.slot]
        self.slot = 1 - self.slot
        if held is None or held[0]() is not store:
            self._fill(store, self.slot, workspace)
            held = self.held[self.slot]
        assert held is not None
        torch.cuda.current_stream(store.device).wait_event(held[1])
        # used up: the next time round the buffer holds another layer
        self.held[self.slot] = None
        previous = None if self.previous is None else self.previous()
        if previous is not None and previous is not store:
            self.following[previous] = ref(store)
        self.previous = ref(store)
        known = self.following.get(store)
        following = None if known is None else known()
        if following is not None:
            self._fill(following, 1 - self.slot, workspace)
        return self._buffers(store, self.slot, workspace)

    def _buffers(
        self, store: OffloadedPrefix, slot: int, workspace: Workspace
    ) -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            workspace.take(f"offloaded {name} {slot}", tuple(x.shape), x.dtype, store.device)
            for name, x in (("keys", store.keys), ("values", store.values))
        )

    def _fill(self, store: OffloadedPrefix, slot: int, workspace: Workspace) -> None:
        """Start the copy into a buffer, behind everything that reads the buffer so far."""
        side = copy_stream(store.device)
        buffers = self._buffers(store, slot, workspace)
        side.wait_stream(torch.cuda.current_stream(store.device))
        with torch.cuda.stream(side):
            for buffer, source in zip(buffers, (store.keys, store.values), strict=True):
                # a buffer that is replaced by a larger one must outlive the copy
                buffer.record_stream(side)
                buffer.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(side)
        self.held[slot] = (ref(store), event)


#: Layers of one cache share its workspace, and with it the two buffers.
_ahead: WeakKeyDictionary[Workspace, _Prefetch] = WeakKeyDictionary()
