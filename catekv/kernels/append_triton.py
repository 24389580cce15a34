"""New tokens to the tail in one launch for keys and values."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.variant import Variant, signature

#: (sequence, head, token) entries of one program: few, because a decode step has few entries.
BLOCK_ENTRIES = 4


@triton.jit(do_not_specialize=["entries", "tokens", "capacity"])
def _append(
    tail_keys, tail_values, keys, values, tail_length, entries, tokens, capacity,
    tail_key_b, tail_key_h, tail_key_t, tail_value_b, tail_value_h, tail_value_t,
    key_b, key_h, key_t, value_b, value_h, value_t,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    token = entry % tokens
    row = entry // tokens
    # buffers may hold more than 2^31 elements
    head = (row % KV_HEADS).to(tl.int64)
    batch = (row // KV_HEADS).to(tl.int64)
    column = tl.load(tail_length) - tokens + token
    inside = (entry < entries) & (column >= 0) & (column < capacity)
    column = column.to(tl.int64)
    token = token.to(tl.int64)

    d = tl.arange(0, BLOCK_D)[None, :]
    mask = inside[:, None] & (d < HEAD_DIM)
    source = (batch * key_b + head * key_h + token * key_t)[:, None] + d
    target = (batch * tail_key_b + head * tail_key_h + column * tail_key_t)[:, None] + d
    tl.store(tail_keys + target, tl.load(keys + source, mask=mask), mask=mask)

    d = tl.arange(0, BLOCK_DV)[None, :]
    mask = inside[:, None] & (d < VALUE_DIM)
    source = (batch * value_b + head * value_h + token * value_t)[:, None] + d
    target = (batch * tail_value_b + head * tail_value_h + column * tail_value_t)[:, None] + d
    tl.store(tail_values + target, tl.load(values + source, mask=mask), mask=mask)


def append_triton(
    tail_keys: Tensor, tail_values: Tensor, keys: Tensor, values: Tensor, tail_length: Tensor
) -> None:
    """Arguments as in :func:`catekv.kernels.append`."""
    batch, heads, tokens, head_dim = keys.shape
    value_dim = values.shape[-1]
    entries = batch * heads * tokens
    _append[(triton.cdiv(entries, BLOCK_ENTRIES),)](
        tail_keys, tail_values, keys, values, tail_length, entries, tokens, tail_keys.shape[2],
        *tail_keys.stride()[:3], *tail_values.stride()[:3], *keys.stride()[:3],
        *values.stride()[:3],
        KV_HEADS=heads, HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_ENTRIES=BLOCK_ENTRIES,
        BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_DV=triton.next_power_of_2(value_dim),
        num_warps=2,
    )  # fmt: skip


def variants() -> list[Variant]:
    """Every compiled form, for models with keys and values of one dimension."""
    pointers = ("tail_keys", "tail_values", "keys", "values")
    strides = tuple(
        f"{name}_{axis}"
        for name in ("tail_key", "tail_value", "key", "value")
        for axis in ("b", "h", "t")
    )
    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for dim in (64, 96, 128, 256):
            constants = {
                "KV_HEADS": 8,
                "HEAD_DIM": dim,
                "VALUE_DIM": dim,
                "BLOCK_ENTRIES": BLOCK_ENTRIES,
                "BLOCK_D": triton.next_power_of_2(dim),
                "BLOCK_DV": triton.next_power_of_2(dim),
            }
            types = {**dict.fromkeys(pointers, f"*{dtype}"), "tail_length": "*i32"}
            found.append(
                Variant(
                    name=f"append {dtype} d{dim}",
                    function=_append,
                    signature=signature(_append, types, constants),
                    constants=constants,
                    divisible=(*pointers, "tail_length", *strides),
                    num_warps=2,
                    hot=True,
                )
            )
    return found
