"""Dense keys and values that grow at the end: a layer's prompt while it comes in, or its tail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: A tail grows by one part in this many, so that decoding does not copy it every step.
GROWTH = 8


@dataclass(frozen=True, eq=False)
class FixedTail:
    """What the device itself knows about the tails of a cache while a decode step runs.

    Tails are then buffers of fixed size and no number of the host enters the computation, so that
    it can be recorded once and replayed.

    Attributes:
        length: int32 [1], columns in use in every layer, the step's own included.
        mask: bool [batch, 1, 1, capacity], False on padding columns; None without padding.
        used: while a step is recorded, collects what it reads and what must therefore stay alive.
    """

    length: Tensor
    mask: Tensor | None
    used: list[Any] | None = None


class TokenBuffer:
    """Keys [batch, kv_heads, capacity, head_dim] and values; the first ``length`` tokens count."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0
        # a tensor handed in by the model is referred to, never written into
        self._owned = False

    @property
    def capacity(self) -> int:
        """Tokens that fit without another allocation."""
        return self.keys.shape[2] if self.keys is not None and self._writable() else self.length

    def _writable(self) -> bool:
        """Whether the tensors are this buffer's own, and torch lets them be changed in place."""
        if self.keys is None or not self._owned:
            return False
        return not self.keys.is_inference() or torch.is_inference_mode_enabled()

    def append(
        self, keys: Tensor, values: Tensor, reserve: int = 0, *, exact: bool = False
    ) -> None:
        """Add tokens [batch, kv_heads, tokens, dim].

        Args:
            keys, values: the first ones are referred to, not copied, if no more are expected.
            reserve: tokens expected altogether.
            exact: allocate what is needed and no spare room.
        """
        needed = self.length + keys.shape[2]
        if self.keys is None and needed >= reserve:
            # fresh views: the caller's own tensors must not be tagged or grown
            self.keys, self.values = keys.view(keys.shape), values.view(values.shape)
            self.length = needed
            return
        if self.keys is None or needed > self.capacity:
            spare = 0 if exact else needed // GROWTH
            self._grow(keys, values, max(needed + spare, reserve))
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.length : needed] = keys
        self.values[:, :, self.length : needed] = values
        self.length = needed

    def reserve(self, capacity: int, keys: Tensor, values: Tensor) -> None:
        """Make room for ``capacity`` tokens in tensors that stay where they are until then.

        Unused columns hold zeros: attention over the whole buffer gives them no weight, but
        multiplies their values.

        Args:
            keys, values: any tensors [batch, kv_heads, ..., dim] with the extents, number format
                and device to use.
        """
        if self.keys is None or capacity > self.capacity:
            # normal tensors even within inference mode: they outlive it
            with torch.inference_mode(False):
                self._grow(keys, values, max(capacity, self.length))
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.length :] = 0
        self.values[:, :, self.length :] = 0

    def _grow(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        old_keys, old_values = self.keys, self.values
        self.keys = keys.new_empty(*keys.shape[:2], capacity, keys.shape[-1])
        self.values = values.new_empty(*values.shape[:2], capacity, values.shape[-1])
        self._owned = True
        if old_keys is not None and old_values is not None:
            self.keys[:, :, : self.length] = old_keys[:, :, : self.length]
            self.values[:, :, : self.length] = old_values[:, :, : self.length]

    def views(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens in it, as fresh views."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def drop_first(self, tokens: int) -> None:
        """Forget the oldest ``tokens`` tokens."""
        rest = self.length - tokens
        if tokens and rest and self.keys is not None and self.values is not None:
            self.keys = self.keys[:, :, tokens : self.length].clone()
            self.values = self.values[:, :, tokens : self.length].clone()
            self._owned = True
        self.length = rest

    def crop(self, remove: int) -> None:
        """Forget the last ``remove`` tokens."""
        self.length -= remove

    def select(self, indices: Tensor) -> None:
        """Take these batch entries, in this order."""
        if self.keys is not None and self.values is not None:
            keys, values = self.views()
            indices = indices.to(keys.device)
            self.keys, self.values = keys.index_select(0, indices), values.index_select(0, indices)
            self._owned = True

    def tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.keys, self.values) if tensor is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenBuffer:
        # a copy holds what counts and not the room that was reserved for more
        copy = TokenBuffer()
        if self.keys is not None:
            keys, values = self.views()
            copy.keys, copy.values, copy.length = keys.clone(), values.clone(), self.length
            copy._owned = True
        return copy
