"""Dense keys and values that grow at the end: a layer's prompt while it comes in, or its tail."""

from __future__ import annotations

from torch import Tensor

#: A tail grows by one part in this many, so that decoding does not copy it every step.
GROWTH = 8


class TokenBuffer:
    """Keys [batch, kv_heads, capacity, head_dim] and values; the first ``length`` tokens count."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0
        # a tensor handed in by the model is referred to, never written into
        self._owned = False

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
        if self.keys is None or not self._owned or needed > self.keys.shape[2]:
            spare = 0 if exact else needed // GROWTH
            self._grow(keys, values, max(needed + spare, reserve))
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.length : needed] = keys
        self.values[:, :, self.length : needed] = values
        self.length = needed

    def _grow(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        old_keys, old_values = self.keys, self.values
        self.keys = keys.new_empty(*keys.shape[:2], capacity, keys.shape[3])
        self.values = values.new_empty(*values.shape[:2], capacity, values.shape[3])
        self._owned = True
        if old_keys is not None and old_values is not None:
            self.keys[:, :, : self.length] = old_keys[:, :, : self.length]
            self.values[:, :, : self.length] = old_values[:, :, : self.length]

    def views(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens in it, as fresh views."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

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
