"""New tokens to the tail: the definition, which is also the torch path."""

from __future__ import annotations

import torch
from torch import Tensor


def append_torch(
    tail_keys: Tensor, tail_values: Tensor, keys: Tensor, values: Tensor, tail_length: Tensor
) -> None:
    """Arguments as in :func:`catekv.kernels.append`; nothing waits for the device."""
    tokens, capacity = keys.shape[2], tail_keys.shape[2]
    column = tail_length - tokens + torch.arange(tokens, device=keys.device)
    inside = ((column >= 0) & (column < capacity))[:, None]
    # Columns outside write back what they find. Taken modulo the capacity they never meet a column
    # inside, because there are no more tokens than columns.
    column = column.remainder(capacity)
    for buffer, new in ((tail_keys, keys), (tail_values, values)):
        old = buffer.index_select(2, column)
        buffer.index_copy_(2, column, torch.where(inside, new, old))
