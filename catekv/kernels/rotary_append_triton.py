"""Rotary embedding and append in one launch: one program for each head of each sequence."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.rotary_append import HeadNorms
from catekv.kernels.variant import Variant, signature


@triton.jit
def _normed(x, weight, square_mean, epsilon):
    """RMSNorm of some numbers of a row with this mean square, rounded twice as the model does."""
    rounded = (x.to(tl.float32) * tl.rsqrt(square_mean + epsilon)).to(x.dtype)
    return (weight.to(tl.float32) * rounded.to(tl.float32)).to(x.dtype)


@triton.jit(do_not_specialize=["capacity"])
def _rotary_append(
    projected, cos, sin, query_weight, key_weight, queries, tail_keys, tail_values, tail_length,
    epsilon, capacity, cos_b, sin_b,
    tail_key_b, tail_key_h, tail_key_t, tail_value_b, tail_value_h, tail_value_t,
    QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    # buffers may hold more than 2^31 elements
    batch = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM
    source = projected + (batch * (QUERY_HEADS + 2 * KV_HEADS) + head) * HEAD_DIM
    x = tl.load(source + d, mask=inside, other=0.0)
    column = (tl.load(tail_length) - 1 + tl.zeros_like(d)).to(tl.int64)
    fits = inside & (column >= 0) & (column < capacity)
    if head >= QUERY_HEADS + KV_HEADS:
        value_head = (head - QUERY_HEADS - KV_HEADS).to(tl.int64)
        value = batch * tail_value_b + value_head * tail_value_h + column * tail_value_t + d
        tl.store(tail_values + value, x, mask=fits)
    else:
        turns = d < ROTARY_DIM
        if INTERLEAVED:
            other = d ^ 1
            angle = d // 2
            first = d % 2 == 0
        else:
            first = d < ROTARY_DIM // 2
            other = tl.where(first, d + ROTARY_DIM // 2, d - ROTARY_DIM // 2)
            angle = d
        y = tl.load(source + other, mask=turns, other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            mean = tl.sum(wide * wide, axis=0) / HEAD_DIM
            if head < QUERY_HEADS:
                x_weight = tl.load(query_weight + d, mask=inside, other=0.0)
                y_weight = tl.load(query_weight + other, mask=turns, other=0.0)
            else:
                x_weight = tl.load(key_weight + d, mask=inside, other=0.0)
                y_weight = tl.load(key_weight + other, mask=turns, other=0.0)
            x = _normed(x, x_weight, mean, epsilon)
            y = _normed(y, y_weight, mean, epsilon)
        c = tl.load(cos + batch * cos_b + angle, mask=turns, other=0.0).to(tl.float32)
        s = tl.load(sin + batch * sin_b + angle, mask=turns, other=0.0).to(tl.float32)
        wide = y.to(tl.float32)
        # both products are rounded before they are added, as the model stores them
        own = (x.to(tl.float32) * c).to(x.dtype).to(tl.float32)
        crossed = (tl.where(first, -wide, wide) * s).to(x.dtype).to(tl.float32)
        x = tl.where(turns, (own + crossed).to(x.dtype), x)
        if head < QUERY_HEADS:
            query = (batch * QUERY_HEADS + head) * HEAD_DIM + d
            tl.store(queries + query, x, mask=inside)
        else:
            key_head = (head - QUERY_HEADS).to(tl.int64)
            key = batch * tail_key_b + key_head * tail_key_h + column * tail_key_t + d
            tl.store(tail_keys + key, x, mask=fits)


def rotary_append_triton(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    tail_keys: Tensor,
    tail_values: Tensor,
    tail_length: Tensor,
    query_heads: int,
    interleaved: bool,
    norms: HeadNorms | None,
) -> Tensor:
    """Arguments and result as in :func:`catekv.kernels.rotary_append`."""
    batch = projected.shape[0]
    _, kv_heads, capacity, head_dim = tail_keys.shape
    queries = projected.new_empty(batch, query_heads, 1, head_dim)
    weights = (cos, cos, 0.0) if norms is None else (norms.query, norms.key, norms.epsilon)
    _rotary_append[(query_heads + 2 * kv_heads, batch)](
        projected, cos, sin, *weights[:2], queries, tail_keys, tail_values, tail_length,
        weights[2], capacity, *(x.stride(0) if len(x) > 1 else 0 for x in (cos, sin)),
        *tail_keys.stride()[:3], *tail_values.stride()[:3],
        QUERY_HEADS=query_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, ROTARY_DIM=cos.shape[-1],
        INTERLEAVED=interleaved, NORM=norms is not None,
        BLOCK_D=triton.next_power_of_2(head_dim), num_warps=1,
    )  # fmt: skip
    return queries


#: The forms of families: how much of a head is rotated, whether pairs are neighbours, and whether
#: heads are normed before.
FORMS = {"half": (1, False, False), "interleaved partial": (2, True, False),
         "normed": (1, False, True)}  # fmt: skip


def variants() -> list[Variant]:
    """Every compiled form, for models with 32 query and 8 KV heads."""
    pointers = ("projected", "cos", "sin", "query_weight", "key_weight", "queries", "tail_keys",
                "tail_values")  # fmt: skip
    tails = (f"tail_{name}_{axis}" for name in ("key", "value") for axis in ("b", "h", "t"))
    strides = ("cos_b", "sin_b", *tails)
    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for dim in (64, 96, 128, 256):
            for form, (parts, interleaved, norm) in FORMS.items():
                constants = {
                    "QUERY_HEADS": 32,
                    "KV_HEADS": 8,
                    "HEAD_DIM": dim,
                    "ROTARY_DIM": dim // parts,
                    "INTERLEAVED": interleaved,
                    "NORM": norm,
                    "BLOCK_D": triton.next_power_of_2(dim),
                }
                types = {**dict.fromkeys(pointers, f"*{dtype}"), "tail_length": "*i32"}
                found.append(
                    Variant(
                        name=f"rotary_append {form} {dtype} d{dim}",
                        function=_rotary_append,
                        signature=signature(
                            _rotary_append, {**types, "epsilon": "fp32"}, constants
                        ),
                        constants=constants,
                        divisible=(*pointers, "tail_length", *strides),
                        num_warps=1,
                        hot=True,
                    )
                )
    return found
