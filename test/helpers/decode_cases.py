"""Random layers for tests of what happens while decoding, and attention over parts of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from catekv import kernels
from catekv.kernels.packing import pack
from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.methods import Method, Observed
from catekv.methods.stores.base import DecodeStore

DIM = 8
HEADS = 2
GROUP = 2


def random_layer(batch: int, tokens: int, seed: int = 0, window: int = 8, **more) -> Observed:
    """One layer of a random prompt with 4 query heads and 2 KV heads."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, HEADS * GROUP, window, DIM, generator=generator)
    keys, values = torch.randn(2, batch, HEADS, tokens, DIM, generator=generator)
    return Observed(queries, keys, values, DIM**-0.5, **{"layer": 3, "num_layers": 4, **more})


def sequence(observed: Observed, b: int, start: int = 0) -> Observed:
    """One sequence of a layer without its first ``start`` columns."""
    part = slice(b, b + 1)
    return dataclasses.replace(
        observed,
        queries=observed.queries[part],
        keys=observed.keys[part, :, start:],
        values=observed.values[part, :, start:],
    )


def compressed(
    method: Method, observed: Observed, valid: Tensor | None = None
) -> tuple[RaggedPrefix, DecodeStore | None]:
    """What the method keeps of a layer, packed, and its store."""
    selection = method.select_padded([observed], valid)[0]
    prefix = selection.packed(observed.keys, observed.values)
    return prefix, method.open_store(prefix, observed, valid, selection)


def step_queries(batch: int, seed: int = 1, tokens: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, HEADS * GROUP, tokens, DIM, generator=generator)


def step_output(
    prefix: RaggedPrefix, queries: Tensor, blocks: BlockList | None = None, tail: int = 1
) -> Tensor:
    """Attention of a step over a prefix and a tail that is the same in every sequence."""
    generator = torch.Generator().manual_seed(7)
    batch = prefix.batch
    tail = max(tail, queries.shape[2])
    keys, values = torch.randn(2, 1, HEADS, tail, DIM, generator=generator)
    keys, values = (x.expand(batch, -1, -1, -1).contiguous() for x in (keys, values))
    return kernels.ragged_decode(queries, prefix, keys, values, DIM**-0.5, blocks=blocks)


def store_output(store: DecodeStore, queries: Tensor) -> Tensor:
    prefix, blocks = store.read(queries, DIM**-0.5)
    return step_output(prefix, queries, blocks)


def read_tokens(blocks: BlockList, prefix: RaggedPrefix, row: int) -> list[int]:
    """Entries of a row that a step reads, sorted."""
    return sorted(blocks.tokens(row, prefix.host_rows[row][1]).tolist())


def restricted(observed: Observed, tokens: list[list[int]]) -> RaggedPrefix:
    """A prefix that holds only these tokens of every row (rows in (batch, head) order)."""
    batch, heads, total = observed.keys.shape[:3]
    keep = torch.zeros(batch * heads, total, dtype=torch.bool)
    for row, chosen in enumerate(tokens):
        keep[row, chosen] = True
    return pack(observed.keys, observed.values, keep.view(batch, heads, total))
