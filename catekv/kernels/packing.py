"""Compression: the kept entries of a layer packed into one flat block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catekv.kernels.ragged import Merged, RaggedPrefix, from_rows, storage_order


def pack(keys: Tensor, values: Tensor, keep: Tensor) -> RaggedPrefix:
    """Copy what is kept into flat storage, in one pass; a view if everything is kept.

    Args:
        keys: [batch, kv_heads, tokens, head_dim]; values: [batch, kv_heads, tokens, value_dim].
        keep: bool [batch, kv_heads, tokens]. Rows may keep different numbers, also none.
    """
    batch, heads, tokens = keep.shape
    lengths = keep.sum(dim=-1).flatten().tolist()  # the one host synchronisation of a layer
    if all(length == tokens for length in lengths):
        rows = [(row * tokens, tokens) for row in range(batch * heads)]
        flat_keys = keys.contiguous().view(-1, keys.shape[-1])
        return from_rows(
            flat_keys, values.contiguous().view(-1, values.shape[-1]), None, rows, heads
        )
    # the kernels need this module: their package cannot be imported before it
    from catekv import kernels

    _, rows = storage_order(lengths)
    offsets = torch.tensor([start for start, _ in rows], device=keep.device).view(batch, heads)
    flat_keys, flat_values = kernels.pack(keys, values, keep, offsets, sum(lengths))
    return from_rows(flat_keys, flat_values, None, rows, heads)


def pack_merged(merged: Sequence[Sequence[Merged]]) -> RaggedPrefix:
    """Store entries that a method made itself: ``merged[batch][kv_head]``, with their biases."""
    heads = len(merged[0])
    entries = [entry for sequence in merged for entry in sequence]
    order, rows = storage_order([entry.keys.shape[0] for entry in entries])
    bias = None
    if any(entry.bias is not None for entry in entries):
        bias = torch.cat(
            [
                entries[i].keys.new_zeros(entries[i].keys.shape[0], dtype=torch.float32)
                if entries[i].bias is None
                else entries[i].bias.float()  # type: ignore[union-attr]
                for i in order
            ]
        )
    keys = torch.cat([entries[i].keys for i in order])
    values = torch.cat([entries[i].values for i in order])
    return from_rows(keys, values, bias, rows, heads)
