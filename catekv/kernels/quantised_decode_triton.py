"""Decode attention that loads the codes of a quantised prefix and nothing else of it.

Work is split as in :mod:`catekv.kernels.ragged_decode_triton`, whose tail and reduction these
launches share; how a block of codes is attended to is in :mod:`catekv.kernels.codes_triton`. In
``int4`` a row's codes are whole blocks; those behind them are its residual, in the model's type.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.codes import FORMS, GROUP, RESIDUAL, half_of
from catekv.kernels.codes_triton import attend_eight_bits, attend_four_bits, attend_residual
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import BlockList
from catekv.kernels.ragged_decode_triton import (
    LaunchOptions,
    _power_of_two,
    argument_types,
    attend_tail,
    combine_segments,
    decode_variant,
    load_queries,
    mask_arguments,
    scales_of,
    scratch_of,
    split_of,
)
from catekv.kernels.variant import Variant
from catekv.kernels.workspace import Workspace

#: Largest tile of queries, as for plain entries; half as many in half precision, because codes and
#: scales take registers besides. A tile more reads half the bytes of a plain prefix, or a third.
MAX_QUERY_TILE = {2: 32, 4: 16}


def launch_options(form: str, head_dim: int, element_size: int, query_tile: int) -> LaunchOptions:
    """The options for a form, a head dimension and a tile of queries; by rule, as those of plain
    entries. A block of four-bit codes lies in a group of keys."""
    wide = _power_of_two(head_dim) > 128
    if element_size == 4:
        return LaunchOptions(16 if wide else 32, 4, 2, 1)
    if query_tile > 16:
        return LaunchOptions(32, 8, 2, 1)
    if wide:
        return LaunchOptions(32, 8, 3, 1)
    # channels that fill no power of two are masked, which takes registers
    block = 64 if head_dim == _power_of_two(head_dim) else 32
    return LaunchOptions(block, 4, 3, 2)


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
                        top, total, acc, acc_second, least, least_second = attend_four_bits(
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
                        top, total, acc, acc_second = attend_residual(
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
                        top, total, acc, acc_second = attend_eight_bits(
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
    value_dim, rows = tail_values.shape[-1], batch * kv_heads
    rule = functools.partial(launch_options, prefix.form)
    split = split_of(queries, prefix.plan, tail, MAX_QUERY_TILE, rule, options)
    options, plan = split.options, split.plan

    segments = plan.segments + rows * split.tail_splits
    scratch = scratch_of(queries, value_dim, segments, rows, workspace)
    tail_mask, mask_strides = mask_arguments(tail_mask, batch, query_tokens, tail)
    if queries.stride(-1) != 1:
        queries = queries.contiguous()
    shape = {
        "KV_HEADS": kv_heads, "GROUP": query_heads // kv_heads, "VALUE_DIM": value_dim,
        "DEVICE_LENGTH": tail_length is not None,
    }  # fmt: skip
    _decode_codes[(rows * split.tail_splits + plan.programs, split.tiles)](
        queries, *_words(prefix), *(prefix.residual or (None, None)), prefix.plan.bias,
        prefix.plan.offsets, prefix.plan.lengths, prefix.places, plan.block_start, plan.first_row,
        tail_keys, tail_values, tail_mask, tail_length, *scratch[:2],
        *scales_of(form, scaling), tail, split.tail_splits, split.tail_part, plan.per_program,
        rows, query_tokens,
        *queries.stride()[:3], *tail_keys.stride()[:3], *tail_values.stride()[:3], *mask_strides,
        **_extents(head_dim, value_dim), BLOCK_M=split.tile, BLOCK_N=options.block,
        HAS_BIAS=prefix.plan.bias is not None, HAS_MASK=tail_mask is not None,
        CAPPED=form.softcap is not None, FORM=prefix.form, **shape,
        num_warps=options.num_warps, num_stages=options.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    shape = {**shape, "LIST_SIZE": 0}
    return combine_segments(scratch, split, tail, tail_length, form, shape)


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
    types = {
        **argument_types(name),
        **dict.fromkeys(("residual_keys", "residual_values"), f"*{name}"),
        **dict.fromkeys(("key_codes", "value_codes"), f"*{codes}"),
        **dict.fromkeys(("key_scales", "value_scales"), f"*{scales}"),
        "places": "*i64",
    }
    absent = [] if form == "int4" else ["residual_keys", "residual_values", "places"]
    absent.append("tail_length" if question else "tail_mask")
    if use != "decode bias":
        absent.append("bias")
    constants: dict[str, Any] = {
        **_extents(head_dim, head_dim), "KV_HEADS": 8, "GROUP": 4, "VALUE_DIM": head_dim,
        "BLOCK_M": tile, "BLOCK_N": options.block, "HAS_BIAS": use == "decode bias",
        "HAS_MASK": question, "DEVICE_LENGTH": not question, "CAPPED": use == "decode capped",
        "FORM": form, **dict.fromkeys(absent),
    }  # fmt: skip
    return decode_variant(
        f"quantised_decode {form} {use} {name}, d{head_dim}", _decode_codes, types, constants,
        options, hot=not question and dtype.itemsize == 2,
    )  # fmt: skip
