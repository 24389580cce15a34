"""Blocks of codes attended to: what :mod:`catekv.kernels.codes` defines, in a program's registers.

Codes become numbers of the queries' type; they are small integers, or floats of four bits, so that
this is exact. Scales never meet the codes one by one: a key's scale multiplies its logit, a
channel's scale the queries (once a block, because a block lies in one group of keys), and a value's
scale its weight. Least numbers are a product of their own for keys and one number per query and
half of the channels for values.

The channels are taken in halves, as four-bit codes lie in their bytes: ``q`` and ``q_second``,
``acc`` and ``acc_second``.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from catekv.kernels.ragged_decode_triton import weigh


@triton.jit
def load_halves(base, slot, inside, column, DIM: tl.constexpr, HALF: tl.constexpr):
    """The first and the second half of the channels of entries [N, H]."""
    place = base + slot[:, None] * DIM + column[None, :]
    first = tl.load(place, mask=inside[:, None] & (column[None, :] < HALF), other=0)
    second = tl.load(
        place + HALF, mask=inside[:, None] & (HALF + column[None, :] < DIM), other=0
    )  # fmt: skip
    return first, second


@triton.jit
def _number(codes, KIND: tl.constexpr, FORM: tl.constexpr):
    """Codes of eight bits as numbers; those of fp8, given as bytes, in units of 256."""
    if FORM == "fp8":
        # moved to where float16 has its exponent, which counts from 8 less
        bits = ((codes & 0x80).to(tl.uint16) << 8) | ((codes & 0x7F).to(tl.uint16) << 7)
        return bits.to(tl.float16, bitcast=True).to(KIND)
    return codes.to(KIND)


@triton.jit
def _scale_and_zero(words):
    """Two float16 of 32 bits, in float32."""
    scale = (words & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    zero = ((words >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    return scale.to(tl.float32), zero.to(tl.float32)


@triton.jit
def _add_values(acc, shrink, weights, codes, scale):
    """``acc * shrink + weights @ (codes * scale)`` for codes [N, H] and a scale [N] per entry."""
    if codes.dtype == tl.float16:
        # relative: the product stays in the range of float16, however small the scales
        largest = tl.max(scale, 0)
        largest = tl.where(largest > 0.0, largest, 1.0)
        relative = (weights * (scale / largest)[None, :]).to(tl.float16)
        return acc * shrink[:, None] + tl.dot(relative, codes) * largest
    scaled = (weights * scale[None, :]).to(codes.dtype)
    return tl.dot(scaled, codes, acc * shrink[:, None], input_precision="ieee")


@triton.jit
def attend_eight_bits(
    q, q_second, key_codes, value_codes, key_scales, value_scales, slot, inside, extra,
    column, value_column, scale, cap, top, total, acc, acc_second,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HALF: tl.constexpr, VALUE_HALF: tl.constexpr,
    CAPPED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Entries at ``slot`` [N] where ``inside``."""
    unit: tl.constexpr = 256.0 if FORM == "fp8" else 1.0
    k, k_second = load_halves(key_codes, slot, inside, column, HEAD_DIM, HALF)
    v, v_second = load_halves(value_codes, slot, inside, value_column, VALUE_DIM, VALUE_HALF)
    key_scale = tl.load(key_scales + slot, mask=inside, other=0.0) * unit
    value_scale = tl.load(value_scales + slot, mask=inside, other=0.0) * unit
    products = tl.dot(q, tl.trans(_number(k, q.dtype, FORM)), input_precision="ieee")
    products += tl.dot(
        q_second, tl.trans(_number(k_second, q.dtype, FORM)), input_precision="ieee"
    )  # fmt: skip
    products *= key_scale[None, :]
    top, total, weights, shrink = weigh(
        products, extra, inside[None, :], scale, cap, top, total, CAPPED
    )
    acc = _add_values(acc, shrink, weights, _number(v, q.dtype, FORM), value_scale)
    acc_second = _add_values(
        acc_second, shrink, weights, _number(v_second, q.dtype, FORM), value_scale
    )
    return top, total, acc, acc_second


@triton.jit
def _keys_of_half(q, codes, words):
    """Products [M, N] of one half of the channels of queries [M, H] and of keys: codes [N, H], and
    a scale with a least number for every channel."""
    scale, zero = _scale_and_zero(words)
    scaled = (q.to(tl.float32) * scale[None, :]).to(q.dtype)
    # the same column for every entry: a product costs less than a sum over channels
    least = tl.broadcast_to(zero.to(q.dtype)[:, None], (codes.shape[1], codes.shape[0]))
    products = tl.dot(q, least, input_precision="ieee")
    return tl.dot(scaled, tl.trans(codes), products, input_precision="ieee")


@triton.jit
def attend_four_bits(
    q, q_second, key_codes, value_codes, key_scales, value_scales, first, entry, extra,
    column, value_column, scale, cap, top, total, acc, acc_second, least, least_second,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, VALUE_HALF: tl.constexpr,
    CAPPED: tl.constexpr, GROUP_SIZE: tl.constexpr,
):  # fmt: skip
    """A block of entries [N] of one group, from the slot ``first`` on; all of them are there.

    ``least`` [M, N] adds up, entry by entry, what the values' least numbers give.
    """
    slot = first + entry
    channels = key_scales + (first // GROUP_SIZE) * HEAD_DIM + column
    words = tl.load(channels, mask=column < HALF, other=0)
    words_second = tl.load(channels + HALF, mask=HALF + column < HEAD_DIM, other=0)
    k = tl.load(
        key_codes + slot[:, None] * HALF + column[None, :], mask=column[None, :] < HALF, other=0
    )  # fmt: skip
    v = tl.load(
        value_codes + slot[:, None] * VALUE_HALF + value_column[None, :],
        mask=value_column[None, :] < VALUE_HALF, other=0,
    )  # fmt: skip
    value_words = tl.load(value_scales + slot * 2)
    value_words_second = tl.load(value_scales + slot * 2 + 1)
    products = _keys_of_half(q, (k & 15).to(q.dtype), words)
    products += _keys_of_half(q_second, (k >> 4).to(q.dtype), words_second)
    top, total, weights, shrink = weigh(
        products, extra, (entry >= 0)[None, :], scale, cap, top, total, CAPPED
    )
    value_scale, zero = _scale_and_zero(value_words)
    value_scale_second, zero_second = _scale_and_zero(value_words_second)
    acc = _add_values(acc, shrink, weights, (v & 15).to(q.dtype), value_scale)
    acc_second = _add_values(
        acc_second, shrink, weights, (v >> 4).to(q.dtype), value_scale_second
    )  # fmt: skip
    least = least * shrink[:, None] + weights * zero[None, :]
    least_second = least_second * shrink[:, None] + weights * zero_second[None, :]
    return top, total, acc, acc_second, least, least_second


@triton.jit
def attend_residual(
    q, q_second, keys, values, slot, inside, extra, column, value_column, scale, cap,
    top, total, acc, acc_second,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HALF: tl.constexpr, VALUE_HALF: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Entries in the model's type at ``slot`` [N] where ``inside``."""
    k, k_second = load_halves(keys, slot, inside, column, HEAD_DIM, HALF)
    v, v_second = load_halves(values, slot, inside, value_column, VALUE_DIM, VALUE_HALF)
    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    products += tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
    top, total, weights, shrink = weigh(
        products, extra, inside[None, :], scale, cap, top, total, CAPPED
    )
    narrow = weights.to(v.dtype)
    acc = acc * shrink[:, None] + tl.dot(narrow, v, input_precision="ieee")
    acc_second = acc_second * shrink[:, None] + tl.dot(narrow, v_second, input_precision="ieee")
    return top, total, acc, acc_second
