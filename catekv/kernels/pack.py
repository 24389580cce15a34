"""A selection to flat prefix storage: the definition, which is also the torch path."""

from __future__ import annotations

from torch import Tensor


def pack_torch(
    keys: Tensor, values: Tensor, keep: Tensor, offsets: Tensor, slots: int
) -> tuple[Tensor, Tensor]:
    """Arguments as in :func:`catekv.kernels.pack`.

    Row by row, so that indices exist of one row at a time; on a GPU every row waits for the device.
    """
    flat_keys = keys.new_empty(slots, keys.shape[-1])
    flat_values = values.new_empty(slots, values.shape[-1])
    starts = offsets.tolist()
    for batch in range(keep.shape[0]):
        for head in range(keep.shape[1]):
            kept = keep[batch, head].nonzero().squeeze(-1)
            part = slice(starts[batch][head], starts[batch][head] + len(kept))
            flat_keys[part] = keys[batch, head].index_select(0, kept)
            flat_values[part] = values[batch, head].index_select(0, kept)
    return flat_keys, flat_values
