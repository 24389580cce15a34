"""Decode attention that loads the codes of a quantised prefix and nothing else of it.

Work is split as in :mod:`catekv.kernels.ragged_decode_triton`, whose tail and reduction these
launches share. Codes become numbers of the queries' type in registers; they are small integers, or
floats of four bits, so that this is exact. Scales never meet the codes one by one: a key's scale
multiplies its logit, a channel's scale the queries (once a block, because a block lies in one group
of keys), and a value's scale its weight, relative to the largest of the block. Least numbers are a
product of their own for keys and one number per query and half of the channels for values.

The channels are taken in halves, as four-bit codes lie in their bytes. In ``int4`` a row's codes
are whole blocks; those behind them are its residual, in the model's type.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.codes import FORMS, GROUP, RESIDUAL, half_of
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import BlockList
from catekv.kernels.ragged_decode_triton import (
    REDUCE_COLUMNS,
    REDUCE_SEGMENTS,
    LaunchOptions,
    _parts,
    _power_of_two,
    _processors,
    _reduce,
    attend_tail,
    load_queries,
    mask_arguments,
    prefix_programs_of,
    weigh,
)
from catekv.kernels.variant import Variant, signature
from catekv.kernels.work_plan import work_plan
from catekv.kernels.workspace import Workspace

#: Largest tile of queries, as for plain entries; half as many in half precision, because codes and
#: scales take registers besides. A tile more reads half the bytes of a plain prefix, or a third.
MAX_QUERY_TILE = {2: 32, 4: 16}
_LOG2_E = 1.4426950408889634


def launch_options(form: str, head_dim: int, element_size: int, query_tile: int) -> LaunchOptions:
    """The options for a form, a head dimension and a tile of queries; by rule, as those of plain
    entries. A block of four-bit codes is at most a group of keys."""
    wide = _power_of_two(head_dim) > 128
    if element_size == 4:
        return LaunchOptions(16 if wide else 32, 4, 2, 1)
    block = 32 if wide else 64
    if query_tile > 16:
        return LaunchOptions(block, 8, 2, 1)
    if wide and form == "int4":
        return LaunchOptions(block, 8, 3, 1)
    return LaunchOptions(block, 4, 3, 2)


@triton.jit
def _load_halves(base, slot, inside, column, DIM: tl.constexpr, HALF: tl.constexpr):
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
def _attend_eight_bits(
    q, q_second, key_codes, value_codes, key_scales, value_scales, slot, inside, extra,
    column, value_column, scale, cap, top, total, acc, acc_second,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HALF: tl.constexpr, VALUE_HALF: tl.constexpr,
    CAPPED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Entries at ``slot`` [N] where ``inside``."""
    unit: tl.constexpr = 256.0 if FORM == "fp8" else 1.0
    k, k_second = _load_halves(key_codes, slot, inside, column, HEAD_DIM, HALF)
    v, v_second = _load_halves(value_codes, slot, inside, value_column, VALUE_DIM, VALUE_HALF)
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
def _attend_four_bits(
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
def _attend_residual(
    q, q_second, keys, values, slot, inside, extra, column, value_column, scale, cap,
    top, total, acc, acc_second,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HALF: tl.constexpr, VALUE_HALF: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Entries in the model's type at ``slot`` [N] where ``inside``."""
    k, k_second = _load_halves(keys, slot, inside, column, HEAD_DIM, HALF)
    v, v_second = _load_halves(values, slot, inside, value_column, VALUE_DIM, VALUE_HALF)
    products = tl.dot(q, tl.trans(k), input_precision="ieee")
    products += tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
    top, total, weights, shrink = weigh(
        products, extra, inside[None, :], scale, cap, top, total, CAPPED
    )
    narrow = weights.to(v.dtype)
    acc = acc * shrink[:, None] + tl.dot(narrow, v, input_precision="ieee")
    acc_second = acc_second * shrink[:, None] + tl.dot(narrow, v_second, input_precision="ieee")
    return top, total, acc, acc_second


@triton.jit
def _load_extra(bias, slot, inside, HAS_BIAS: tl.constexpr):
    """What is added to the logits of entries [N], in powers of two."""
    extra = tl.zeros(slot.shape, tl.float32)
    if HAS_BIAS:
        log2_e: tl.constexpr = 1.4426950408889634
        extra = tl.load(bias + slot, mask=inside, other=0.0) * log2_e
    return extra


@triton.jit
def _store_halves(
    partial, log_sums, segment, member, queries_per_row, value_column, top, total, acc, acc_second,
    VALUE_DIM: tl.constexpr, VALUE_HALF: tl.constexpr,
):  # fmt: skip
    wanted = member < queries_per_row
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    entry = segment.to(tl.int64) * queries_per_row + member
    tl.store(log_sums + entry, tl.where(some, top + tl.log2(safe), float("-inf")), mask=wanted)
    place = partial + entry[:, None] * VALUE_DIM + value_column[None, :]
    first = wanted[:, None] & (value_column[None, :] < VALUE_HALF)
    second = wanted[:, None] & (VALUE_HALF + value_column[None, :] < VALUE_DIM)
    tl.store(place, acc / safe[:, None], mask=first)
    tl.store(place + VALUE_HALF, acc_second / safe[:, None], mask=second)


_VARYING = [
    "tail_tokens", "tail_splits", "tail_part", "per_program", "rows", "query_tokens", "mask_b",
    "mask_q", "mask_t",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def _decode_codes(
    queries, key_codes, value_codes, key_scales, value_scales, residual_keys, residual_values,
    bias, offsets, lengths, places, block_start, first_row, tail_keys, tail_values, tail_mask,
    tail_length, partial, log_sums,
    scale, cap, tail_tokens, tail_splits, tail_part, per_program, rows, query_tokens,
    query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t,
    mask_b, mask_q, mask_t,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HALF: tl.constexpr, VALUE_HALF: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, DEVICE_LENGTH: tl.constexpr,
    CAPPED: tl.constexpr, FORM: tl.constexpr, GROUP_SIZE: tl.constexpr, NEWEST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tail_programs = rows * tail_splits
    first_tail = tl.num_programs(0) - tail_programs
    if program >= first_tail:
        attend_tail(
            program - first_tail, queries, tail_keys, tail_values, tail_mask, tail_length, partial,
            log_sums, scale, cap, tail_tokens, tail_splits, tail_part, query_tokens,
            query_b, query_h, query_t, key_b, key_h, key_t, value_b, value_h, value_t,
            mask_b, mask_q, mask_t,
            KV_HEADS, GROUP, HEAD_DIM, VALUE_DIM, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
            HAS_MASK, DEVICE_LENGTH, CAPPED,
        )  # fmt: skip
    else:
        member = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        queries_per_row = query_tokens * GROUP
        token = member // GROUP
        head_in_group = member % GROUP
        column = tl.arange(0, BLOCK_H)
        value_column = tl.arange(0, BLOCK_HV)
        entry = tl.arange(0, BLOCK_N)
        there = (member < queries_per_row)[:, None]
        block = program * per_program
        last_block = tl.minimum(block + per_program, tl.load(block_start + rows))
        row = tl.load(first_row + program)
        while block < last_block:
            row_block = tl.load(block_start + row)
            stop_block = tl.minimum(last_block, tl.load(block_start + row + 1))
            if block < stop_block:
                length = tl.load(lengths + row)
                offset = tl.load(offsets + row)
                b = (row // KV_HEADS).to(tl.int64)
                head = (row % KV_HEADS).to(tl.int64)
                q = load_queries(
                    queries, b, head, token, head_in_group, column,
                    there & (column[None, :] < HALF), query_b, query_h, query_t, GROUP,
                )  # fmt: skip
                q_second = load_queries(
                    queries, b, head, token, head_in_group, HALF + column,
                    there & (HALF + column[None, :] < HEAD_DIM), query_b, query_h, query_t, GROUP,
                )  # fmt: skip
                top = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
                acc = tl.zeros([BLOCK_M, BLOCK_HV], tl.float32)
                acc_second = tl.zeros([BLOCK_M, BLOCK_HV], tl.float32)
                start = block - row_block
                stop = stop_block - row_block
                if FORM == "int4":
                    coded = tl.maximum(length - NEWEST, 0) // GROUP_SIZE * GROUP_SIZE
                    coded_blocks = coded // BLOCK_N
                    codes = tl.load(places + row)
                    least = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                    least_second = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                    for number in range(start, tl.minimum(stop, coded_blocks)):
                        extra = _load_extra(
                            bias, offset + number * BLOCK_N + entry, entry >= 0, HAS_BIAS
                        )  # fmt: skip
                        top, total, acc, acc_second, least, least_second = _attend_four_bits(
                            q, q_second, key_codes, value_codes, key_scales, value_scales,
                            codes + number * BLOCK_N, entry, extra, column, value_column,
                            scale, cap, top, total, acc, acc_second, least, least_second,
                            HEAD_DIM, HALF, VALUE_HALF, CAPPED, GROUP_SIZE,
                        )  # fmt: skip
                    acc += tl.sum(least, 1)[:, None]
                    acc_second += tl.sum(least_second, 1)[:, None]
                    newest = tl.load(places + rows + row) - coded
                    for number in range(tl.maximum(start, coded_blocks), stop):
                        position = number * BLOCK_N + entry
                        inside = position < length
                        extra = _load_extra(bias, offset + position, inside, HAS_BIAS)
                        top, total, acc, acc_second = _attend_residual(
                            q, q_second, residual_keys, residual_values, newest + position,
                            inside, extra, column, value_column, scale, cap,
                            top, total, acc, acc_second,
                            HEAD_DIM, VALUE_DIM, HALF, VALUE_HALF, CAPPED,
                        )  # fmt: skip
                else:
                    for number in range(start, stop):
                        position = number * BLOCK_N + entry
                        inside = position < length
                        slot = offset + position
                        extra = _load_extra(bias, slot, inside, HAS_BIAS)
                        top, total, acc, acc_second = _attend_eight_bits(
                            q, q_second, key_codes, value_codes, key_scales, value_scales, slot,
                            inside, extra, column, value_column, scale, cap,
                            top, total, acc, acc_second,
                            HEAD_DIM, VALUE_DIM, HALF, VALUE_HALF, CAPPED, FORM,
                        )  # fmt: skip
                _store_halves(
                    partial, log_sums, tail_programs + program + row, member, queries_per_row,
                    value_column, top, total, acc, acc_second, VALUE_DIM, VALUE_HALF,
                )  # fmt: skip
            block = stop_block
            row += 1


def _words(prefix: QuantisedPrefix) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes and scales of keys and values as the kernel loads them: fp8 as bytes, and a scale with
    its least number as one word."""
    keys, values = prefix.keys, prefix.values
    if prefix.form == "int4":
        scales = (keys.scales.view(torch.int32), values.scales.view(torch.int32))
        return keys.numbers, values.numbers, *scales
    numbers = (keys.numbers, values.numbers)
    if prefix.form == "fp8":
        numbers = (keys.numbers.view(torch.uint8), values.numbers.view(torch.uint8))
    return *numbers, keys.scales, values.scales


def quantised_decode_triton(
    queries: Tensor,
    prefix: QuantisedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    form: LogitForm = PLAIN,
    options: LaunchOptions | None = None,
) -> Tensor:
    """Arguments as in :func:`catekv.kernels.ragged_decode`, without ``blocks``; ``options``
    overrides the rule.

    Nothing waits for the device, and with a workspace only the result is allocated.
    """
    batch, query_heads, query_tokens, head_dim = queries.shape
    kv_heads, tail = tail_keys.shape[1:3]
    value_dim = tail_values.shape[-1]
    group, rows, device = query_heads // kv_heads, batch * kv_heads, queries.device
    queries_per_row = group * query_tokens
    tile = min(MAX_QUERY_TILE[queries.element_size()], _power_of_two(queries_per_row))
    tiles = -(-queries_per_row // tile)
    options = options or launch_options(prefix.form, head_dim, queries.element_size(), tile)
    block = options.block
    resident = max(1, _processors(device) * options.programs_per_processor // tiles)
    tail_splits, tail_part = _parts(tail, block, resident // rows)
    plan = work_plan(prefix.plan, block, prefix_programs_of(resident, rows))

    workspace = workspace or Workspace()
    entries = (plan.segments + rows * tail_splits) * queries_per_row
    partial = workspace.take("decode partial", (entries, value_dim), torch.float32, device)
    log_sums = workspace.take("decode log sums", (entries,), torch.float32, device)
    # laid out as the output projection reads it: tokens before heads
    output = queries.new_empty(batch, query_tokens, query_heads, value_dim).transpose(1, 2)
    tail_mask, mask_strides = mask_arguments(tail_mask, batch, query_tokens, tail)
    if queries.stride(-1) != 1:
        queries = queries.contiguous()
    shape = {
        "KV_HEADS": kv_heads, "GROUP": group, "VALUE_DIM": value_dim,
        "DEVICE_LENGTH": tail_length is not None,
    }  # fmt: skip
    cap = form.softcap or 1.0
    scale = scaling * _LOG2_E if form.softcap is None else scaling / cap
    _decode_codes[(rows * tail_splits + plan.programs, tiles)](
        queries, *_words(prefix), *(prefix.residual or (None, None)), prefix.plan.bias,
        prefix.plan.offsets, prefix.plan.lengths, prefix.places, plan.block_start, plan.first_row,
        tail_keys, tail_values, tail_mask, tail_length, partial, log_sums,
        scale, cap * _LOG2_E, tail, tail_splits, tail_part, plan.per_program, rows, query_tokens,
        queries.stride(0), queries.stride(1), queries.stride(2),
        *tail_keys.stride()[:3], *tail_values.stride()[:3], *mask_strides,
        **_extents(head_dim, value_dim), BLOCK_M=tile, BLOCK_N=block,
        HAS_BIAS=prefix.plan.bias is not None, HAS_MASK=tail_mask is not None,
        CAPPED=form.softcap is not None, FORM=prefix.form, **shape,
        num_warps=options.num_warps, num_stages=options.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    _reduce[(rows * queries_per_row, -(-value_dim // REDUCE_COLUMNS))](
        partial, log_sums, plan.block_start, None, tail_length, form.sinks, output,
        tail, tail_splits, tail_part, plan.per_program, 0, 0, rows, query_tokens,
        *output.stride()[:3],
        COLUMNS=REDUCE_COLUMNS, SEGMENTS=REDUCE_SEGMENTS, LIST_SIZE=0, **shape, num_warps=2,
        enable_fp_fusion=True,
    )  # fmt: skip
    return output


def _extents(head_dim: int, value_dim: int) -> dict[str, int]:
    """Constants of the kernel that follow from the dimensions."""
    half, value_half = half_of(head_dim), half_of(value_dim)
    return {
        "HEAD_DIM": head_dim,
        "HALF": half,
        "VALUE_HALF": value_half,
        "BLOCK_D": _power_of_two(head_dim),
        "BLOCK_DV": _power_of_two(value_dim),
        "BLOCK_H": _power_of_two(half),
        "BLOCK_HV": _power_of_two(value_half),
        "GROUP_SIZE": GROUP,
        "NEWEST": RESIDUAL,
    }


def variants() -> list[Variant]:
    """The forms that a launch may take, for the compile check: all in bfloat16, and of the other
    types the plain step."""
    kinds = ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32"))
    uses = ("decode", "decode bias", "decode capped", "question")
    return [
        _variant(dtype, name, head_dim, form, use)
        for dtype, name in kinds
        for head_dim in (64, 96, 128, 256)
        for form in FORMS
        for use in (uses if name == "bf16" else uses[:1])
    ]


def _variant(dtype: torch.dtype, name: str, head_dim: int, form: str, use: str) -> Variant:
    question = use == "question"
    tile = min(32 if question else 16, MAX_QUERY_TILE[dtype.itemsize])
    options = launch_options(form, head_dim, dtype.itemsize, tile)
    codes, scales = {"int8": ("i8", "fp32"), "fp8": ("u8", "fp32"), "int4": ("u8", "i32")}[form]
    plain = ("queries", "tail_keys", "tail_values", "residual_keys", "residual_values")
    types = {
        **dict.fromkeys(plain, f"*{name}"),
        **dict.fromkeys(("key_codes", "value_codes"), f"*{codes}"),
        **dict.fromkeys(("key_scales", "value_scales"), f"*{scales}"),
        **dict.fromkeys(("bias", "partial", "log_sums"), "*fp32"),
        **dict.fromkeys(("lengths", "block_start", "first_row", "tail_length"), "*i32"),
        **dict.fromkeys(("offsets", "places"), "*i64"),
        "tail_mask": "*u8",
        "scale": "fp32",
        "cap": "fp32",
    }
    absent = [] if form == "int4" else ["residual_keys", "residual_values", "places"]
    if not question:
        absent.append("tail_mask")
    if use != "decode bias":
        absent.append("bias")
    constants: dict[str, Any] = {
        **_extents(head_dim, head_dim), "KV_HEADS": 8, "GROUP": 4, "VALUE_DIM": head_dim,
        "BLOCK_M": tile, "BLOCK_N": options.block, "HAS_BIAS": use == "decode bias",
        "HAS_MASK": question, "DEVICE_LENGTH": True, "CAPPED": use == "decode capped",
        "FORM": form, **dict.fromkeys(absent),
    }  # fmt: skip
    strides = [f"{tensor}_{axis}" for tensor in ("query", "key", "value") for axis in "bht"]
    return Variant(
        f"quantised_decode {form} {use} {name}, d{head_dim}",
        _decode_codes,
        signature(_decode_codes, types, constants),
        constants,
        divisible=(
            *strides[1:],
            *(key for key in types if key not in absent and key not in ("scale", "cap")),
        ),
        num_warps=options.num_warps,
        num_stages=options.num_stages,
        hot=not question and dtype.itemsize == 2,
        programs=options.programs_per_processor,
    )
