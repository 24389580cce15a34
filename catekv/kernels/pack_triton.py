"""A selection to flat prefix storage: one pass over keys and values."""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.variant import Variant, signature

#: Tokens that one program copies at most.
BLOCK_TOKENS = 32


@triton.jit(do_not_specialize=["tokens", "blocks", "kv_heads"])
def _pack(
    keys, values, keep, ranks, offsets, flat_keys, flat_values, tokens, blocks, kv_heads,
    key_b, key_h, key_t, value_b, value_h, value_t,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """``keep`` uint8 and ``ranks`` int32 [rows, tokens]: kept tokens up to and including each."""
    row = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    place = row.to(tl.int64) * tokens + token
    kept = tl.load(keep + place, mask=token < tokens, other=0) != 0
    rank = tl.load(ranks + place, mask=kept, other=1)
    # flat storage and prompts may hold more than 2^31 elements
    slot = tl.load(offsets + row) + (rank - 1).to(tl.int64)
    batch = (row // kv_heads).to(tl.int64)
    head = (row % kv_heads).to(tl.int64)
    token = token.to(tl.int64)

    d = tl.arange(0, BLOCK_D)[None, :]
    mask = kept[:, None] & (d < HEAD_DIM)
    source = keys + batch * key_b + head * key_h + token[:, None] * key_t + d
    tl.store(flat_keys + slot[:, None] * HEAD_DIM + d, tl.load(source, mask=mask), mask=mask)

    d = tl.arange(0, BLOCK_DV)[None, :]
    mask = kept[:, None] & (d < VALUE_DIM)
    source = values + batch * value_b + head * value_h + token[:, None] * value_t + d
    tl.store(flat_values + slot[:, None] * VALUE_DIM + d, tl.load(source, mask=mask), mask=mask)


def pack_triton(
    keys: Tensor, values: Tensor, keep: Tensor, offsets: Tensor, slots: int
) -> tuple[Tensor, Tensor]:
    """Arguments as in :func:`catekv.kernels.pack`.

    Besides its result it allocates four bytes per row and token (and as much again while it counts
    them). Nothing waits for the device.
    """
    batch, heads, tokens = keep.shape
    head_dim, value_dim = keys.shape[-1], values.shape[-1]
    flat_keys = keys.new_empty(slots, head_dim)
    flat_values = values.new_empty(slots, value_dim)
    keep = keep.contiguous()
    ranks = keep.cumsum(dim=-1, dtype=torch.int32)
    blocks = triton.cdiv(tokens, BLOCK_TOKENS)
    if slots:
        _pack[(batch * heads * blocks,)](
            keys, values, keep.view(torch.uint8), ranks, offsets.contiguous(), flat_keys,
            flat_values, tokens, blocks, heads, *keys.stride()[:3], *values.stride()[:3],
            HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_DV=triton.next_power_of_2(value_dim),
            num_warps=4,
        )  # fmt: skip
    return flat_keys, flat_values


def variants() -> list[Variant]:
    """Every compiled form, for models with keys and values of one dimension."""
    pointers = ("keys", "values", "flat_keys", "flat_values")
    strides = ("key_b", "key_h", "key_t", "value_b", "value_h", "value_t")
    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for dim in (64, 96, 128, 256):
            constants = {
                "HEAD_DIM": dim,
                "VALUE_DIM": dim,
                "BLOCK_TOKENS": BLOCK_TOKENS,
                "BLOCK_D": triton.next_power_of_2(dim),
                "BLOCK_DV": triton.next_power_of_2(dim),
            }
            types = {
                **dict.fromkeys(pointers, f"*{dtype}"),
                "keep": "*u8",
                "ranks": "*i32",
                "offsets": "*i64",
            }
            found.append(
                Variant(
                    name=f"pack {dtype} d{dim}",
                    function=_pack,
                    signature=signature(_pack, types, constants),
                    constants=constants,
                    divisible=(*types, *strides),
                )
            )
    return found
