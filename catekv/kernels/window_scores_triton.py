"""Chunk scores of the observation window without its attention matrix: two passes over the keys."""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels import window_triton
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.variant import Variant
from catekv.kernels.window_triton import load_keys, probabilities, row_head, tile_of, window_of

_VARYING = ["start", "stop", "tokens", "window", "scored", "chunks", "blocks", "chunk_size"]


@triton.jit(do_not_specialize=_VARYING)
def _chunk_scores(
    queries, keys, heads, tops, factors, scores, scale, start, stop, tokens, window, scored,
    query_b, query_h, query_t, key_b, key_h, key_t, chunks, blocks, chunk_size,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK_ROOM: tl.constexpr, MAX_FIRST: tl.constexpr,
):  # fmt: skip
    """Each program scores BLOCK_N / CHUNK_ROOM chunks, each in a room of a power of two."""
    row = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    batch, head = row_head(row, heads, scored)
    chunks_here: tl.constexpr = BLOCK_N // CHUNK_ROOM
    column = tl.arange(0, BLOCK_N)
    in_chunk = column % CHUNK_ROOM
    chunk = block * chunks_here + column // CHUNK_ROOM
    position = start + chunk * chunk_size + in_chunk
    valid = (in_chunk < chunk_size) & (chunk < chunks) & (position < stop)
    key_tile = load_keys(keys, batch, head, position, valid, key_b, key_h, key_t, HEAD_DIM, BLOCK_D)
    total = tl.zeros([chunks_here if MAX_FIRST else BLOCK_N], tl.float32)
    for first_query in range(0, window, BLOCK_W):
        mean = probabilities(
            queries, tops, factors, row, batch, head, first_query, key_tile, position, valid,
            scale, tokens, window, query_b, query_h, query_t,
            GROUP, HEAD_DIM, BLOCK_D, BLOCK_W, BLOCK_N,
        )  # fmt: skip
        if MAX_FIRST:
            mean = tl.max(tl.reshape(mean, [BLOCK_W, chunks_here, CHUNK_ROOM]), 2)
        total += tl.sum(mean, 0)
    if not MAX_FIRST and CHUNK_ROOM > 1:
        total = tl.max(tl.reshape(total, [chunks_here, CHUNK_ROOM]), 1)
    chunk = block * chunks_here + tl.arange(0, chunks_here)
    tl.store(scores + row.to(tl.int64) * chunks + chunk, total, mask=chunk < chunks)


def window_scores_triton(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int,
    stop: int,
    chunk_size: int,
    rule: str,
    scored: int,
    heads: Tensor | None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Arguments as in :func:`catekv.kernels.window_scores`; only the plain form of logits."""
    assert form.plain
    chunks = triton.cdiv(scored, chunk_size)
    scored_heads = keys.shape[1] if heads is None else len(heads)
    scores = torch.empty(
        keys.shape[0], scored_heads, chunks, dtype=torch.float32, device=keys.device
    )
    if not scores.numel():
        return scores
    view = window_of(queries, keys, scaling, start, stop, heads)
    room = triton.next_power_of_2(chunk_size)
    constants = view.constants()
    blocks = triton.cdiv(chunks * room, constants["BLOCK_N"])
    # the softmax needs all keys, the scores only those that are asked for
    stop = min(stop, start + scored)
    scale, _, _, *others = view.numbers()
    _chunk_scores[(view.rows * blocks,)](
        *view.pointers(), scores, scale, start, stop, *others, chunks, blocks, chunk_size,
        CHUNK_ROOM=room, MAX_FIRST=room > 1 and rule == "sum_of_chunk_max", **constants,
    )  # fmt: skip
    return scores


def variants() -> list[Variant]:
    """Every compiled form for tokens (of all heads) and for chunks of eight (of some heads), and
    those of the first pass."""
    found = window_triton.variants()
    for shape in window_triton.built_shapes():
        tile = tile_of(shape[1], shape[0], shape[3])
        rules = {"tokens": (1, False), "sum of maxima": (8, True), "maximum of sums": (8, False)}
        for rule, (room, max_first) in rules.items():
            constants: dict[str, Any] = {
                "BLOCK_W": tile.queries,
                "BLOCK_N": tile.keys,
                "CHUNK_ROOM": room,
                "MAX_FIRST": max_first,
            }
            if room == 1:
                constants["heads"] = None
            name, types = f"window_scores {rule}", {"scores": "*fp32"}
            found.append(window_triton.variant(name, _chunk_scores, shape, types, constants, tile))
    return found
