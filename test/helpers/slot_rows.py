"""What the tests of stores that evict while decoding feed them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catekv import kernels
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.base import Method, Observed

HEADS, GROUP, DIM = 2, 2, 8
SCALING = 0.5


def random_tensors(batch: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, HEADS * GROUP, tokens, DIM, generator=generator)
    keys, values = torch.randn(2, batch, HEADS, tokens, DIM, generator=generator)
    return queries, keys, values


def after_prefill(
    method: Method,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor | None = None,
    layer: int = 0,
) -> tuple[RaggedPrefix, Any]:
    """The prefix that a method selects, and its store."""
    sums = kernels.column_sums(queries, keys, SCALING, valid)
    window = queries[:, :, max(0, queries.shape[2] - method.needs.window) :]
    observed = Observed(window, keys, values, SCALING, layer, 3, column_sums=sums)
    selection = method.select_padded([observed], valid)[0]
    prefix = selection.packed(keys, values)
    return prefix, method.decode_store(prefix, observed, valid, selection)


def decode(
    store: Any, queries: Tensor, keys: Tensor, values: Tensor, visible: Any = None
) -> Tensor:
    """One forward over a store whose tail holds just these tokens."""
    prefix, blocks = store.read(queries, SCALING)
    mask = None if visible is None else visible[:, None, None]
    output = kernels.ragged_decode(queries, prefix, keys, values, SCALING, mask, blocks=blocks)
    assert store.absorb(queries, keys, values, SCALING, visible) == keys.shape[2]
    return output


def entries(store: Any, row: int) -> dict[int, tuple[Tensor, Tensor, float]]:
    """Key, value and bias of every entry of a row, by position."""
    prefix, _ = store.read(torch.zeros(0), SCALING)
    keys, values, bias = prefix.row(row // prefix.kv_heads, row % prefix.kv_heads)
    return {
        int(position): (keys[slot].clone(), values[slot].clone(), float(bias[slot]))
        for slot, position in enumerate(store.entries.positions[row].tolist())
        if position >= 0
    }


def running_sums(store: Any, row: int) -> dict[int, Tensor]:
    """Running attention sum of every entry of a row, by position."""
    known = store.entries
    return {
        int(position): score
        for position, score in zip(known.positions[row], known.scores[row], strict=True)
        if position >= 0
    }
