"""What a whole model's cache holds, where processes hold parts of it (tensor parallelism)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.cache import plain_layers
from catekv.cache.layer import RaggedLayer
from catekv.decode.context import Context
from catekv.models.sharding import all_heads, group_position, is_sharded


@dataclass(frozen=True)
class CacheSizes:
    """Sizes of a context's cache over all KV heads of the model.

    Attributes:
        lengths: stored tokens of every layer, int64 [batch, kv_heads].
        compressing: those of the layers that compress.
        kept_share, stored_bytes, full_bytes: as :class:`Context` gives them. Heads that every
            process holds count once.
        state_bytes: those among both that are recurrent states, equal for all sequences.
    """

    lengths: list[Tensor]
    compressing: list[Tensor]
    kept_share: float
    stored_bytes: int
    full_bytes: int
    state_bytes: int


def cache_sizes(context: Context) -> CacheSizes:
    """Sizes of the whole model's cache. Processes that share a model must all call this."""
    cache = context.cache
    total = cache.settings.kv_heads
    shared = any(is_sharded(n.shape[-1], total) for n in _of_ragged(context, cache.lengths()))
    lengths = [all_heads(n) if shared and n.numel() else n for n in cache.lengths()]
    compressing = _of_ragged(context, lengths)
    stored = full = 0
    for layer, rows in zip(cache.ragged_layers, compressing, strict=True):
        batch, heads = rows.shape
        stored += int(rows.sum())
        full += heads * (batch * layer.seen - sum(layer.padding_per_sequence()))
    states = sum(plain_layers.state_bytes(layer) for layer in cache.layers)
    sizes = [context.stored_bytes(), context.full_bytes(), states]
    share = stored / full if full else 1.0
    return CacheSizes(lengths, compressing, share, *(_sums(sizes) if shared else sizes))


def _of_ragged(context: Context, lengths: list[Tensor]) -> list[Tensor]:
    """What belongs to the layers that compress."""
    pairs = zip(context.cache.layers, lengths, strict=True)
    return [rows for layer, rows in pairs if isinstance(layer, RaggedLayer)]


def _sums(values: list[int]) -> list[int]:
    """Sums over all processes."""
    parts: list[list[int]] = [[] for _ in range(group_position()[1])]
    torch.distributed.all_gather_object(parts, values)
    return [sum(column) for column in zip(*parts, strict=True)]
