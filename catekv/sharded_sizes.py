"""What a whole model's cache holds, where processes hold parts of it (tensor parallelism)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.context import Context
from catekv.ragged_layer import RaggedLayer
from catekv.sharding import all_heads, group_position, is_sharded


@dataclass(frozen=True)
class CacheSizes:
    """Sizes of a context's cache over all KV heads of the model.

    Attributes:
        lengths: stored tokens of every layer, int64 [batch, kv_heads].
        compressing: those of the layers that compress.
        kept_share, stored_bytes, full_bytes: as :class:`Context` gives them. Heads that every
            process holds count once.
    """

    lengths: list[Tensor]
    compressing: list[Tensor]
    kept_share: float
    stored_bytes: int
    full_bytes: int


def cache_sizes(context: Context) -> CacheSizes:
    """Sizes of the whole model's cache. Processes that share a model must all call this."""
    cache = context.cache
    total = cache.settings.kv_heads
    own = [(layer, lengths) for layer, lengths in zip(cache.layers, cache.lengths(), strict=True)]
    shared = any(is_sharded(n.shape[-1], total) for layer, n in own if _compresses(layer))
    values = [context.kept_share(), context.stored_bytes(), context.full_bytes()]
    lengths = [all_heads(n) if shared and n.numel() else n for _, n in own]
    if shared:
        share, stored, full = _sums(values)
        values = [share / group_position()[1], stored, full]
    return CacheSizes(
        lengths,
        [n for (layer, _), n in zip(own, lengths, strict=True) if _compresses(layer)],
        values[0],
        int(values[1]),
        int(values[2]),
    )


def _compresses(layer: object) -> bool:
    return isinstance(layer, RaggedLayer)


def _sums(values: list[float]) -> list[float]:
    """Sums over all processes."""
    parts: list[list[float]] = [[] for _ in range(group_position()[1])]
    torch.distributed.all_gather_object(parts, values)
    return [sum(column) for column in zip(*parts, strict=True)]
