"""Decode attention over a ragged prefix and a dense tail in one launch and a small reduction.

The work of the prefix is split by entries (:mod:`catekv.kernels.work_plan`), that of the tail and
of block lists, where all rows have about the same, into equal parts of every row. Each program
writes a normalised partial result with its log-sum-exp per segment; the reduction combines the
segments of a row. Prefix and tail have a loop each: one merged loop with four loads needs about
half as many registers more and twice the shared memory.

Logits, softmax and accumulation are float32; products take the stored type.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.kernels.variant import Variant, signature
from catekv.kernels.work_plan import WorkPlan, work_plan
from catekv.kernels.workspace import Workspace

#: Largest tile of queries (query tokens times group); more of them are further programs, which read
#: the prefix once more. Twice as many would spill registers; exact float32 products keep whole
#: tiles in registers, so theirs is the smallest there is.
MAX_QUERY_TILE = {2: 64, 4: 16}
#: Blocks of the tail, or of a block list, that one program reads at least.
LEAST_BLOCKS = 4
#: Partial results, and columns of them, that a program of the reduction reads at a time.
REDUCE_SEGMENTS = 32
REDUCE_COLUMNS = 32
_LOG2_E = 1.4426950408889634
#: Multiprocessors assumed where there is no device (interpreter): a few, so that tests split.
_INTERPRETED_PROCESSORS = 3


@dataclass(frozen=True)
class LaunchOptions:
    """How a launch is shaped: ``block`` entries are read at a time; ``programs_per_processor``
    programs share a multiprocessor."""

    block: int
    num_warps: int
    num_stages: int
    programs_per_processor: int


def launch_options(head_dim: int, element_size: int, query_tile: int) -> LaunchOptions:
    """The options for a head dimension and a tile of queries, by rule and not by search.

    Aims at tiles of 16 KiB of keys and of values with two or three in flight, so that two programs
    fit into a multiprocessor of every chip since the A100; of a large tile of queries, which takes
    all registers of eight warps, one.
    """
    padded = _power_of_two(head_dim)
    block = max(16, min(128, 16384 // (padded * element_size)))
    if element_size == 4:
        return LaunchOptions(min(block, 32), 4, 2, 1)
    if query_tile > 32:
        return LaunchOptions(min(block, 64), 8, 2, 1)
    return LaunchOptions(block, 4, 3 if query_tile <= 16 else 2, 2)


def _power_of_two(value: int) -> int:
    """The least power of two that is at least ``value`` and 16, the least extent of a product."""
    return max(16, triton.next_power_of_2(value))


@triton.jit
def tanh(x):
    """Hyperbolic tangent with a relative error of some 1e-7: a series for small numbers, where
    the formula by exponentials would lose what makes them differ."""
    size = tl.abs(x)
    power = tl.exp2(size * -2.8853900817779268)
    large = (1.0 - power) / (1.0 + power)
    square = x * x
    series = 0.021869488536155203 - square * 0.008863235529902197
    series = square * series - 0.05396825396825397
    series = square * series + 0.13333333333333333
    series = square * series - 0.3333333333333333
    small = x + x * square * series
    return tl.where(size < 0.3, small, tl.where(x < 0.0, -large, large))


@triton.jit
def weigh(products, extra, visible, scale, cap, top, total, CAPPED: tl.constexpr):
    """One block's weights [M, N] relative to the largest logit so far, from products [M, N] of
    queries and keys, extra [N] and visible [M or 1, N].

    Returns the new running maximum and sum, the weights, and the factor of what came before.
    """
    logits = products * scale
    if CAPPED:
        logits = cap * tanh(logits)
    logits += extra[None, :]
    logits = tl.where(visible, logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    # a query that has seen nothing yet must not compute inf - inf
    finite = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(logits - finite[:, None])
    shrink = tl.exp2(top - finite)
    return new_top, total * shrink + tl.sum(weights, 1), weights, shrink


@triton.jit
def _online_softmax(
    queries, keys, values, extra, visible, scale, cap, top, total, acc, CAPPED: tl.constexpr
):
    """One block: queries [M, D], keys [N, D], values [N, DV], extra [N], visible [M or 1, N]."""
    products = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    top, total, weights, shrink = weigh(products, extra, visible, scale, cap, top, total, CAPPED)
    acc = acc * shrink[:, None]
    acc += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    return top, total, acc


@triton.jit
def load_queries(
    queries, b, head, token, head_in_group, column, wanted, query_b, query_h, query_t,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Queries [M, D] of one row, zero where there are none."""
    query_head = head * GROUP + head_in_group
    # a question may have more than 2^31 numbers
    place = token.to(tl.int64)
    return tl.load(
        queries + b * query_b + query_head[:, None] * query_h + place[:, None] * query_t
        + column[None, :],
        mask=wanted, other=0.0,
    )  # fmt: skip


@triton.jit
def _attend_slots(
    queries, keys, values, bias, slot, inside, column, value_column, scale, cap,
    top, total, acc,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Read the entries of a prefix at ``slot`` [N] where ``inside`` and attend to them."""
    k = tl.load(
        keys + slot[:, None] * HEAD_DIM + column[None, :],
        mask=inside[:, None] & (column[None, :] < HEAD_DIM), other=0.0,
    )  # fmt: skip
    v = tl.load(
        values + slot[:, None] * VALUE_DIM + value_column[None, :],
        mask=inside[:, None] & (value_column[None, :] < VALUE_DIM), other=0.0,
    )  # fmt: skip
    extra = tl.zeros(slot.shape, tl.float32)
    if HAS_BIAS:
        log2_e: tl.constexpr = 1.4426950408889634
        extra = tl.load(bias + slot, mask=inside, other=0.0) * log2_e
    return _online_softmax(
        queries, k, v, extra, inside[None, :], scale, cap, top, total, acc, CAPPED
    )


@triton.jit
def store_partial(
    partial, log_sums, segment, member, queries_per_row, top, total, acc,
    VALUE_DIM: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_DV)
    wanted = member < queries_per_row
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    entry = segment.to(tl.int64) * queries_per_row + member
    tl.store(log_sums + entry, tl.where(some, top + tl.log2(safe), float("-inf")), mask=wanted)
    tl.store(
        partial + entry[:, None] * VALUE_DIM + column[None, :],
        acc / safe[:, None],
        mask=wanted[:, None] & (column[None, :] < VALUE_DIM),
    )


@triton.jit
def attend_tail(
    segment, queries, tail_keys, tail_values, tail_mask, tail_length, partial, log_sums,
    scale, cap, tail_tokens, tail_splits, tail_part, query_tokens, query_b, query_h, query_t,
    key_b, key_h, key_t, value_b, value_h, value_t, mask_b, mask_q, mask_t,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, DEVICE_LENGTH: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """A program's part of one row's tail."""
    queries_per_row = query_tokens * GROUP
    member = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = member // GROUP
    head_in_group = member % GROUP
    column = tl.arange(0, BLOCK_D)
    value_column = tl.arange(0, BLOCK_DV)
    entry = tl.arange(0, BLOCK_N)
    wanted = (member < queries_per_row)[:, None] & (column[None, :] < HEAD_DIM)
    row = segment // tail_splits
    part = segment % tail_splits
    b = (row // KV_HEADS).to(tl.int64)
    head = (row % KV_HEADS).to(tl.int64)
    used = tail_tokens
    if DEVICE_LENGTH:
        used = tl.load(tail_length)
    start = part * tail_part
    stop = tl.minimum(start + tail_part, used)
    if start < stop:
        q = load_queries(
            queries, b, head, token, head_in_group, column, wanted, query_b, query_h, query_t,
            GROUP,
        )  # fmt: skip
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
        last_seen = used - query_tokens + token
        no_extra = tl.zeros([BLOCK_N], tl.float32)
        for first in range(start, stop, BLOCK_N):
            position = first + entry
            inside = position < stop
            place = position.to(tl.int64)
            k = tl.load(
                tail_keys + b * key_b + head * key_h + place[:, None] * key_t
                + column[None, :],
                mask=inside[:, None] & (column[None, :] < HEAD_DIM), other=0.0,
            )  # fmt: skip
            v = tl.load(
                tail_values + b * value_b + head * value_h + place[:, None] * value_t
                + value_column[None, :],
                mask=inside[:, None] & (value_column[None, :] < VALUE_DIM), other=0.0,
            )  # fmt: skip
            visible = inside[None, :] & (position[None, :] <= last_seen[:, None])
            if HAS_MASK:
                shown = tl.load(
                    tail_mask + b * mask_b + token[:, None].to(tl.int64) * mask_q
                    + position[None, :] * mask_t,
                    mask=visible & (member < queries_per_row)[:, None], other=0,
                )  # fmt: skip
                visible = visible & (shown != 0)
            top, total, acc = _online_softmax(
                q, k, v, no_extra, visible, scale, cap, top, total, acc, CAPPED
            )
        store_partial(
            partial, log_sums, segment, member, queries_per_row, top, total, acc,
            VALUE_DIM, BLOCK_DV,
        )  # fmt: skip


_VARYING = [
    "tail_tokens", "tail_splits", "tail_part", "per_program", "list_capacity", "list_splits",
    "list_part", "rows", "query_tokens", "mask_b", "mask_q", "mask_t",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def _decode(
    queries, keys, values, bias, offsets, lengths, block_start, first_row, block_indices,
    block_counts, tail_keys, tail_values, tail_mask, tail_length, partial, log_sums,
    scale, cap, tail_tokens, tail_splits, tail_part, per_program, list_capacity, list_splits,
    list_part, rows, query_tokens, query_b, query_h, query_t, key_b, key_h, key_t,
    value_b, value_h, value_t, mask_b, mask_q, mask_t,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    LIST_SIZE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
    DEVICE_LENGTH: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    member = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    queries_per_row = query_tokens * GROUP
    token = member // GROUP
    head_in_group = member % GROUP
    column = tl.arange(0, BLOCK_D)
    value_column = tl.arange(0, BLOCK_DV)
    entry = tl.arange(0, BLOCK_N)
    wanted = (member < queries_per_row)[:, None] & (column[None, :] < HEAD_DIM)
    tail_programs = rows * tail_splits
    # Programs start in order. Those of the prefix have the more to read: the tail fills what room
    # they leave.
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
    elif LIST_SIZE > 0:
        row = program // list_splits
        b = (row // KV_HEADS).to(tl.int64)
        head = (row % KV_HEADS).to(tl.int64)
        listed = tl.load(block_counts + row) * LIST_SIZE
        start = (program % list_splits) * list_part
        stop = tl.minimum(start + list_part, listed)
        if start < stop:
            length = tl.load(lengths + row)
            offset = tl.load(offsets + row)
            q = load_queries(
                queries, b, head, token, head_in_group, column, wanted, query_b, query_h, query_t,
                GROUP,
            )  # fmt: skip
            top = tl.full([BLOCK_M], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
            for first in range(start, stop, BLOCK_N):
                position = first + entry
                inside = position < stop
                index = tl.load(
                    block_indices + row * list_capacity + position // LIST_SIZE,
                    mask=inside, other=0,
                )  # fmt: skip
                position = index * LIST_SIZE + position % LIST_SIZE
                inside = inside & (position < length)
                slot = offset + position
                top, total, acc = _attend_slots(
                    q, keys, values, bias, slot, inside, column, value_column, scale, cap,
                    top, total, acc,
                    HEAD_DIM, VALUE_DIM, HAS_BIAS, CAPPED,
                )  # fmt: skip
            store_partial(
                partial, log_sums, tail_programs + program, member, queries_per_row, top, total,
                acc, VALUE_DIM, BLOCK_DV,
            )  # fmt: skip
    else:
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
                    queries, b, head, token, head_in_group, column, wanted, query_b, query_h,
                    query_t, GROUP,
                )  # fmt: skip
                top = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
                acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
                for number in range(block - row_block, stop_block - row_block):
                    position = number * BLOCK_N + entry
                    inside = position < length
                    slot = offset + position
                    top, total, acc = _attend_slots(
                        q, keys, values, bias, slot, inside, column, value_column, scale, cap,
                        top, total, acc,
                        HEAD_DIM, VALUE_DIM, HAS_BIAS, CAPPED,
                    )  # fmt: skip
                store_partial(
                    partial, log_sums, tail_programs + program + row, member, queries_per_row,
                    top, total, acc, VALUE_DIM, BLOCK_DV,
                )  # fmt: skip
            block = stop_block
            row += 1


@triton.jit
def _combine(
    partial, log_sums, first, count, member, queries_per_row, column, top, total, acc,
    VALUE_DIM: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Fold ``count`` segments from ``first`` on into a running maximum, sum and accumulator."""
    for done in range(0, count, SEGMENTS):
        index = done + tl.arange(0, SEGMENTS)
        valid = index < count
        entry = (first + index).to(tl.int64) * queries_per_row + member
        logs = tl.load(log_sums + entry, mask=valid, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(logs, 0))
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(logs - finite)
        shrink = tl.exp2(top - finite)
        tile = tl.load(
            partial + entry[:, None] * VALUE_DIM + column[None, :],
            mask=(weights > 0.0)[:, None] & (column[None, :] < VALUE_DIM), other=0.0,
        )  # fmt: skip
        acc = acc * shrink + tl.sum(tile * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        top = new_top
    return top, total, acc


@triton.jit(do_not_specialize=_VARYING)
def _reduce(
    partial, log_sums, block_start, block_counts, tail_length, sinks, output,
    tail_tokens, tail_splits, tail_part, per_program, list_splits, list_part, rows, query_tokens,
    output_b, output_h, output_t,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, VALUE_DIM: tl.constexpr, COLUMNS: tl.constexpr,
    LIST_SIZE: tl.constexpr, DEVICE_LENGTH: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    queries_per_row = query_tokens * GROUP
    row = tl.program_id(0) // queries_per_row
    member = tl.program_id(0) % queries_per_row
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tail_programs = rows * tail_splits
    used = tail_tokens
    if DEVICE_LENGTH:
        used = tl.load(tail_length)
    head = (row % KV_HEADS) * GROUP + member % GROUP
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    if sinks is not None:
        # as if a segment with values of zero came first
        log2_e: tl.constexpr = 1.4426950408889634
        top = tl.load(sinks + head).to(tl.float32) * log2_e
        total = tl.full((), 1.0, tl.float32)
    acc = tl.zeros([COLUMNS], tl.float32)
    top, total, acc = _combine(
        partial, log_sums, row * tail_splits, tl.cdiv(used, tail_part), member, queries_per_row,
        column, top, total, acc, VALUE_DIM, SEGMENTS,
    )  # fmt: skip
    if LIST_SIZE > 0:
        first = tail_programs + row * list_splits
        count = tl.cdiv(tl.load(block_counts + row) * LIST_SIZE, list_part)
    else:
        start = tl.load(block_start + row)
        stop = tl.load(block_start + row + 1)
        first_program = start // per_program
        first = tail_programs + row + first_program
        count = tl.where(stop > start, (stop - 1) // per_program - first_program + 1, 0)
    top, total, acc = _combine(
        partial, log_sums, first, count, member, queries_per_row,
        column, top, total, acc, VALUE_DIM, SEGMENTS,
    )  # fmt: skip
    result = acc / tl.where(total > 0.0, total, 1.0)
    b = (row // KV_HEADS).to(tl.int64)
    token = (member // GROUP).to(tl.int64)
    place = output + b * output_b + head * output_h + token * output_t
    tl.store(place + column, result.to(output.dtype.element_ty), mask=column < VALUE_DIM)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _parts(tokens: int, block: int, most: int) -> tuple[int, int]:
    """(parts, tokens per part): equal parts of at least :data:`LEAST_BLOCKS` blocks."""
    blocks = max(1, -(-tokens // block))
    parts = max(1, min(-(-blocks // LEAST_BLOCKS), most))
    per_part = -(-blocks // parts)
    return -(-blocks // per_part), per_part * block


def prefix_programs_of(resident: int, rows: int) -> int:
    """Programs that share a prefix: where they leave room for those of the tail, at least one per
    row, all run at once. Many rows have too many of those; then the prefix takes the whole chip
    and the short programs of the tail follow."""
    return resident - rows if rows <= resident // 4 else resident


@dataclass(frozen=True)
class Split:
    """How one decode launch is shaped, and what its programs read.

    Attributes:
        options: of the launch. tile: queries of a row that a program takes, of which a row has
            ``tiles``. queries_per_row: query tokens times group.
        per_row: programs that a row may have if all are to run at once.
        tail_splits, tail_part: parts of every row's tail, and tokens of each.
        plan: shares of the prefix.
    """

    options: LaunchOptions
    tile: int
    tiles: int
    queries_per_row: int
    per_row: int
    tail_splits: int
    tail_part: int
    plan: WorkPlan


def split_of(
    queries: Tensor,
    prefix: RaggedPrefix,
    tail: int,
    largest_tile: dict[int, int],
    rule: Callable[[int, int, int], LaunchOptions],
    options: LaunchOptions | None,
) -> Split:
    """The shape of a launch over a prefix and a tail of so many columns.

    Args:
        largest_tile: of queries, by the bytes of a number.
        rule: the options for a head dimension, the bytes of a number and a tile; ``options``, if
            given, takes its place.
    """
    batch, query_heads, query_tokens, head_dim = queries.shape
    rows = batch * prefix.kv_heads
    queries_per_row = query_heads // prefix.kv_heads * query_tokens
    tile = min(largest_tile[queries.element_size()], _power_of_two(queries_per_row))
    tiles = -(-queries_per_row // tile)
    options = options or rule(head_dim, queries.element_size(), tile)
    resident = max(1, _processors(queries.device) * options.programs_per_processor // tiles)
    per_row = resident // rows
    tail_splits, tail_part = _parts(tail, options.block, per_row)
    plan = work_plan(prefix, options.block, prefix_programs_of(resident, rows))
    return Split(options, tile, tiles, queries_per_row, per_row, tail_splits, tail_part, plan)


def combine_segments(
    scratch: tuple[Tensor, Tensor, Tensor],
    split: Split,
    tail: int,
    tail_length: Tensor | None,
    form: LogitForm,
    shape: dict[str, Any],
    listed: tuple[Tensor | None, int, int] = (None, 0, 0),
) -> Tensor:
    """Launch the reduction, and return the output.

    Args:
        scratch: as :func:`scratch_of` gives it. shape: constants that both launches have.
        listed: counts of listed blocks, parts of every row's list, and tokens of each.
    """
    partial, log_sums, output = scratch
    batch, _, query_tokens, value_dim = output.shape
    rows = batch * shape["KV_HEADS"]
    counts, list_splits, list_part = listed
    plan = split.plan
    _reduce[(rows * split.queries_per_row, -(-value_dim // REDUCE_COLUMNS))](
        partial, log_sums, plan.block_start, counts, tail_length, form.sinks, output,
        tail, split.tail_splits, split.tail_part, plan.per_program, list_splits, list_part, rows,
        query_tokens, *output.stride()[:3],
        COLUMNS=REDUCE_COLUMNS, SEGMENTS=REDUCE_SEGMENTS, **shape, num_warps=2,
        enable_fp_fusion=True,
    )  # fmt: skip
    return output


def mask_arguments(
    tail_mask: Tensor | None, batch: int, query_tokens: int, tail: int
) -> tuple[Tensor | None, tuple[int, int, int]]:
    """A mask as a kernel reads it, with its strides over batch, queries and tail."""
    if tail_mask is None:
        return None, (0, 0, 0)
    tail_mask = tail_mask.expand(batch, 1, query_tokens, tail)
    strides = (tail_mask.stride(0), tail_mask.stride(2), tail_mask.stride(3))
    return tail_mask.view(torch.uint8), strides


def scales_of(form: LogitForm, scaling: float) -> tuple[float, float]:
    """What logits are multiplied with before and after a cap, so that the softmax is one of powers
    of two."""
    cap = form.softcap or 1.0
    return (scaling * _LOG2_E if form.softcap is None else scaling / cap), cap * _LOG2_E


def scratch_of(
    queries: Tensor, value_dim: int, segments: int, rows: int, workspace: Workspace | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Partial results and log sums of all segments of all queries, and the output, which is laid
    out as the output projection reads it: tokens before heads."""
    batch, query_heads, query_tokens, _ = queries.shape
    entries = segments * (batch * query_heads * query_tokens // rows)
    take = (workspace or Workspace()).take
    partial = take("decode partial", (entries, value_dim), torch.float32, queries.device)
    log_sums = take("decode log sums", (entries,), torch.float32, queries.device)
    output = queries.new_empty(batch, query_tokens, query_heads, value_dim).transpose(1, 2)
    return partial, log_sums, output


def ragged_decode_triton(
    queries: Tensor,
    prefix: RaggedPrefix,
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
    """Arguments as in :func:`catekv.kernels.ragged_decode`; ``options`` overrides the rule.

    Nothing waits for the device, and with a workspace only the result is allocated.
    """
    batch, query_heads, query_tokens, head_dim = queries.shape
    kv_heads, tail = tail_keys.shape[1:3]
    value_dim = tail_values.shape[-1]
    rows = batch * kv_heads
    split = split_of(queries, prefix, tail, MAX_QUERY_TILE, launch_options, options)
    options, plan = split.options, split.plan
    list_splits = list_part = list_capacity = 0
    prefix_programs, segments = plan.programs, plan.segments
    if not prefix.slots:
        # nothing is written for listed blocks of an empty prefix, so that nothing may be read
        blocks = None
    if blocks is not None:
        list_capacity = blocks.indices.shape[1]
        listed = list_capacity * blocks.size
        list_splits, list_part = _parts(listed, options.block, split.per_row)
        prefix_programs = segments = rows * list_splits
    segments += rows * split.tail_splits

    scratch = scratch_of(queries, value_dim, segments, rows, workspace)
    tail_mask, mask_strides = mask_arguments(tail_mask, batch, query_tokens, tail)
    if queries.stride(-1) != 1:
        queries = queries.contiguous()
    shape = {
        "KV_HEADS": kv_heads,
        "GROUP": query_heads // kv_heads,
        "VALUE_DIM": value_dim,
        "LIST_SIZE": 0 if blocks is None else blocks.size,
        "DEVICE_LENGTH": tail_length is not None,
    }
    indices, counts = (None, None) if blocks is None else (blocks.indices, blocks.counts)
    _decode[(rows * split.tail_splits + prefix_programs, split.tiles)](
        queries, prefix.keys, prefix.values, prefix.bias, prefix.offsets, prefix.lengths,
        plan.block_start, plan.first_row, indices, counts, tail_keys, tail_values, tail_mask,
        tail_length, *scratch[:2],
        *scales_of(form, scaling), tail, split.tail_splits, split.tail_part, plan.per_program,
        list_capacity, list_splits, list_part, rows, query_tokens,
        *queries.stride()[:3], *tail_keys.stride()[:3], *tail_values.stride()[:3], *mask_strides,
        HEAD_DIM=head_dim, BLOCK_D=_power_of_two(head_dim), BLOCK_DV=_power_of_two(value_dim),
        BLOCK_M=split.tile, BLOCK_N=options.block, HAS_BIAS=prefix.bias is not None,
        HAS_MASK=tail_mask is not None, CAPPED=form.softcap is not None, **shape,
        num_warps=options.num_warps, num_stages=options.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    lists = (counts, list_splits, list_part)
    return combine_segments(scratch, split, tail, tail_length, form, shape, lists)


def variants() -> list[Variant]:
    """Every form that a launch may take, for the compile check."""
    found = []
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        for head_dim in (64, 96, 128, 256):
            for use in (
                "decode", "decode bias", "decode list", "decode capped", "question",
                "long question",
            ):  # fmt: skip
                found.append(_decode_variant(dtype, name, head_dim, use))
        found.append(_reduce_variant(name, lists=False))
        found.append(_reduce_variant(name, lists=True))
        found.append(_reduce_variant(name, lists=False, sinks=True))
    return found


def _decode_variant(dtype: torch.dtype, name: str, head_dim: int, use: str) -> Variant:
    question = use.endswith("question")
    tile = MAX_QUERY_TILE[dtype.itemsize] if use == "long question" else 32 if question else 16
    tile = min(tile, MAX_QUERY_TILE[dtype.itemsize])
    options = launch_options(head_dim, dtype.itemsize, tile)
    absent = ["bias", "block_indices", "block_counts"]
    # the tail of a question has no more columns than are in use
    absent.append("tail_length" if question else "tail_mask")
    if use == "decode bias":
        absent.remove("bias")
    if use == "decode list":
        absent = ["tail_mask", "bias"]
    types = {
        **argument_types(name),
        **dict.fromkeys(("keys", "values"), f"*{name}"),
        **dict.fromkeys(("block_indices", "block_counts"), "*i32"),
    }
    constants: dict[str, Any] = {
        "KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": head_dim, "VALUE_DIM": head_dim,
        "BLOCK_D": _power_of_two(head_dim), "BLOCK_DV": _power_of_two(head_dim),
        "BLOCK_M": tile, "BLOCK_N": options.block, "LIST_SIZE": 16 if use == "decode list" else 0,
        "HAS_BIAS": use == "decode bias", "HAS_MASK": question,
        "DEVICE_LENGTH": not question, "CAPPED": use == "decode capped",
        **dict.fromkeys(absent),
    }  # fmt: skip
    return decode_variant(
        f"ragged_decode {use} {name} d{head_dim}", _decode, types, constants, options,
        hot=not question and dtype.itemsize == 2,
    )  # fmt: skip


def argument_types(name: str) -> dict[str, str]:
    """Types of the arguments that all decode kernels have; ``name`` is that of the model."""
    return {
        **dict.fromkeys(("queries", "tail_keys", "tail_values"), f"*{name}"),
        **dict.fromkeys(("bias", "partial", "log_sums"), "*fp32"),
        **dict.fromkeys(("lengths", "block_start", "first_row", "tail_length"), "*i32"),
        "offsets": "*i64",
        "tail_mask": "*u8",
        "scale": "fp32",
        "cap": "fp32",
    }


def decode_variant(
    name: str,
    function: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    options: LaunchOptions,
    *,
    hot: bool,
) -> Variant:
    """A form of a decode kernel; its pointers and strides are aligned as at a launch."""
    strides = [f"{tensor}_{axis}" for tensor in ("query", "key", "value") for axis in "bht"]
    pointers = [key for key, kind in types.items() if kind[0] == "*" and key not in constants]
    return Variant(
        name,
        function,
        signature(function, types, constants),
        constants,
        divisible=(*strides[1:], *pointers),
        num_warps=options.num_warps,
        num_stages=options.num_stages,
        hot=hot,
        programs=options.programs_per_processor,
    )


def _reduce_variant(name: str, *, lists: bool, sinks: bool = False) -> Variant:
    pointers = ["block_start", "block_counts", "tail_length"]
    types = {"partial": "*fp32", "log_sums": "*fp32", "output": f"*{name}"}
    types |= dict.fromkeys(pointers, "*i32")
    constants: dict[str, Any] = {
        "KV_HEADS": 8, "GROUP": 4, "VALUE_DIM": 128, "COLUMNS": REDUCE_COLUMNS,
        "LIST_SIZE": 16 if lists else 0, "DEVICE_LENGTH": True, "SEGMENTS": REDUCE_SEGMENTS,
    }  # fmt: skip
    if not lists:
        constants["block_counts"] = None
    if sinks:
        types["sinks"] = f"*{name}"
    else:
        constants["sinks"] = None
    divisible = tuple(key for key in types if key not in constants)
    return Variant(
        f"ragged_decode reduce {'list ' if lists else ''}{'sinks ' if sinks else ''}{name}",
        _reduce,
        signature(_reduce, types, constants),
        constants,
        divisible=divisible,
        num_warps=2,
        num_stages=3,
        hot=True,
    )
