"""Order statistics and hit counts of the observation window without its attention matrix.

Non-negative floating-point numbers sort like their bits. Three passes count how many probabilities
fall into each value of the top 9, the middle 11 and the last 11 of their 31 bits; after the first,
only those that share all higher bits with a wanted order statistic. Counts are integers, so results
do not depend on the order of the additions.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels import window_triton
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.variant import Variant
from catekv.kernels.window_triton import (
    Window,
    load_keys,
    probabilities,
    row_head,
    tile_of,
    window_of,
)

FIRST_BITS = 9
NEXT_BITS = 11
#: Keys that one program of a counting pass reads.
SPLIT = 4096


_VARYING = ["start", "stop", "tokens", "window", "scored"]


@triton.jit(do_not_specialize=[*_VARYING, "splits", "per_split", "wanted"])
def _count_digits(
    queries, keys, heads, tops, factors, counts, first_slots, next_slots,
    scale, start, stop, tokens, window, scored,
    query_b, query_h, query_t, key_b, key_h, key_t,
    splits, per_split, wanted,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
    LEVEL: tl.constexpr, FIRST: tl.constexpr, NEXT: tl.constexpr,
):  # fmt: skip
    """Count the digits of one level.

    ``counts`` int32 [rows, FIRST] at level 0, else [rows, wanted, NEXT]. ``first_slots`` int32
    [rows, FIRST] and ``next_slots`` [rows, wanted, NEXT] say where the values with these higher
    digits are counted, -1: nowhere.
    """
    row = tl.program_id(0) // splits
    batch, head = row_head(row, heads, scored)
    first = start + (tl.program_id(0) % splits) * per_split
    end = tl.minimum(first + per_split, stop)
    if LEVEL == 0:
        own = tl.zeros([FIRST], tl.int32)
    for block in range(first, end, BLOCK_N):
        position = block + tl.arange(0, BLOCK_N)
        valid = position < end
        key_tile = load_keys(
            keys, batch, head, position, valid, key_b, key_h, key_t, HEAD_DIM, BLOCK_D
        )
        for first_query in range(0, window, BLOCK_W):
            mean = probabilities(
                queries, tops, factors, row, batch, head, first_query, key_tile, position, valid,
                scale, tokens, window, query_b, query_h, query_t,
                GROUP, HEAD_DIM, BLOCK_D, BLOCK_W, BLOCK_N,
            )  # fmt: skip
            # what is hidden by causality counts, with probability 0; what is no value does not
            query = first_query + tl.arange(0, BLOCK_W)
            counted = (query < window)[:, None] & valid[None, :]
            bits = mean.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            digit = bits // (NEXT * NEXT)
            if LEVEL == 0:
                own += tl.histogram(
                    tl.reshape(digit, [BLOCK_W * BLOCK_N]), FIRST,
                    tl.reshape(counted, [BLOCK_W * BLOCK_N]),
                )  # fmt: skip
            else:
                slot = tl.load(first_slots + row * FIRST + digit, mask=counted, other=-1)
                counted = slot >= 0
                digit = bits // NEXT % NEXT
                if LEVEL == 2:
                    place = (row * wanted + slot) * NEXT + digit
                    slot = tl.load(next_slots + place, mask=counted, other=-1)
                    counted = slot >= 0
                    digit = bits % NEXT
                place = (row * wanted + slot) * NEXT + digit
                tl.atomic_add(counts + place, 1, mask=counted, sem="relaxed")
    if LEVEL == 0:
        digit = tl.arange(0, FIRST)
        tl.atomic_add(counts + row * FIRST + digit, own, mask=own > 0, sem="relaxed")


@triton.jit(
    do_not_specialize=[*_VARYING, "units", "blocks", "unit_size", "limit_count", "query_tiles"]
)
def _count_hits(
    queries, keys, heads, tops, factors, limits, hits,
    scale, start, stop, tokens, window, scored,
    query_b, query_h, query_t, key_b, key_h, key_t,
    units, blocks, unit_size, limit_count, query_tiles,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Queries of one tile that reach each limit, for BLOCK_N / ROOM units.

    ``limits`` int32 [rows, limits], the bits of fp32 numbers; ``hits`` int32 [rows, limits, units].
    """
    query_tile = tl.program_id(0) % query_tiles
    block = (tl.program_id(0) // query_tiles) % blocks
    row = tl.program_id(0) // query_tiles // blocks
    batch, head = row_head(row, heads, scored)
    units_here: tl.constexpr = BLOCK_N // ROOM
    column = tl.arange(0, BLOCK_N)
    in_unit = column % ROOM
    unit = block * units_here + column // ROOM
    position = start + unit * unit_size + in_unit
    valid = (in_unit < unit_size) & (unit < units) & (position < stop)
    key_tile = load_keys(keys, batch, head, position, valid, key_b, key_h, key_t, HEAD_DIM, BLOCK_D)
    first_query = query_tile * BLOCK_W
    mean = probabilities(
        queries, tops, factors, row, batch, head, first_query, key_tile, position, valid,
        scale, tokens, window, query_b, query_h, query_t,
        GROUP, HEAD_DIM, BLOCK_D, BLOCK_W, BLOCK_N,
    )  # fmt: skip
    bits = mean.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if ROOM > 1:
        bits = tl.max(tl.reshape(bits, [BLOCK_W, units_here, ROOM]), 2)
    inside = (first_query + tl.arange(0, BLOCK_W) < window)[:, None]
    unit = block * units_here + tl.arange(0, units_here)
    for index in range(limit_count):
        limit = tl.load(limits + row * limit_count + index)
        count = tl.sum(((bits >= limit) & inside).to(tl.int32), 0)
        place = (row * limit_count + index).to(tl.int64) * units + unit
        tl.atomic_add(hits + place, count, mask=(unit < units) & (count > 0), sem="relaxed")


def _digits_of(counts: Tensor, slots: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Digits of the values with these ranks among those counted at their slot, and their ranks
    among the values with the same digit.

    ``counts`` int32 [rows, slots, digits], ``slots`` and ``ranks`` int64 [rows, wanted].
    """
    digits = counts.shape[-1]
    up_to = counts.cumsum(dim=-1).gather(1, slots[..., None].expand(-1, -1, digits))
    found = torch.searchsorted(up_to, ranks[..., None].contiguous(), right=True)
    found.clamp_(max=digits - 1)
    below = up_to.gather(-1, (found - 1).clamp_min(0)).masked_fill_(found == 0, 0)
    return found[..., 0], ranks - below[..., 0]


def _slot_table(slots: Tensor, digits: Tensor, parents: int, size: int) -> tuple[Tensor, Tensor]:
    """Where the next level counts the values with each of these digits: int32 [rows, parents,
    size], -1 where nobody wants them; and the slot of each wanted value, int64 [rows, wanted]."""
    rows, wanted = digits.shape
    place = slots * size + digits
    index = torch.arange(wanted, device=digits.device)
    # values that agree so far share the slot of the first of them
    same = place[:, :, None] == place[:, None, :]
    own = torch.where(same, index, wanted).amin(dim=-1)
    table = torch.full((rows, parents * size), -1, dtype=torch.int32, device=digits.device)
    table.scatter_(1, place, own.to(torch.int32))
    return table.view(rows, parents, size), own


def _order_statistics(view: Window, positions: Sequence[int]) -> Tensor:
    """fp32 [rows, positions], exact."""
    rows, wanted, device = view.rows, len(positions), view.keys.device
    splits = triton.cdiv(view.span, SPLIT)
    constants = view.constants()
    tables: list[Tensor | None] = [None, None]
    slots = torch.zeros(rows, wanted, dtype=torch.int64, device=device)
    ranks = torch.tensor(positions, dtype=torch.int64).to(device).expand(rows, wanted)
    bits = torch.zeros(rows, wanted, dtype=torch.int64, device=device)
    for level in range(3):
        parents, digit_bits = (1, FIRST_BITS) if level == 0 else (wanted, NEXT_BITS)
        size = 1 << digit_bits
        counts = torch.zeros(rows, parents, size, dtype=torch.int32, device=device)
        _count_digits[(rows * splits,)](
            *view.pointers(), counts, *tables, *view.numbers(), splits, SPLIT, wanted,
            LEVEL=level, FIRST=1 << FIRST_BITS, NEXT=1 << NEXT_BITS, **constants,
        )  # fmt: skip
        digits, ranks = _digits_of(counts, slots, ranks)
        bits = (bits << digit_bits) | digits
        if level < 2:
            tables[level], slots = _slot_table(slots, digits, parents, size)
    return bits.to(torch.int32).view(torch.float32)


def _hits(view: Window, limits: Tensor, unit: int) -> Tensor:
    """int32 [rows, limits, units]; ``limits`` fp32 [rows, limits]."""
    units = triton.cdiv(view.span, unit)
    count = limits.shape[1]
    # a probability is never below a limit of -0.0 or less, and the bits say so only of +0.0
    ordered = limits.float().clamp_min(0.0).add(0.0).contiguous().view(torch.int32)
    hits = torch.zeros(view.rows, count, units, dtype=torch.int32, device=limits.device)
    room = triton.next_power_of_2(unit)
    constants = view.constants()
    blocks = triton.cdiv(units * room, constants["BLOCK_N"])
    query_tiles = triton.cdiv(view.window, constants["BLOCK_W"])
    _count_hits[(view.rows * blocks * query_tiles,)](
        *view.pointers(), ordered, hits, *view.numbers(), units, blocks, unit, count, query_tiles,
        ROOM=room, **constants,
    )  # fmt: skip
    return hits


def window_statistics_triton(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int,
    stop: int,
    positions: Sequence[int],
    limits: Callable[[Tensor], Tensor],
    units: Sequence[int],
    form: LogitForm = PLAIN,
) -> tuple[Tensor, list[Tensor]]:
    """Arguments as in :func:`catekv.kernels.window_statistics`.

    Counts are int32: a row may have up to 2^31 - 1 probabilities. Only the plain form of logits.
    """
    assert form.plain
    lead = keys.shape[:2]
    view = window_of(queries, keys, scaling, start, stop, None)
    statistics = _order_statistics(view, positions)
    least = limits(statistics)
    hits: list[Tensor] = [least] * len(units)
    for unit in set(units):
        same = [index for index, other in enumerate(units) if other == unit]
        rows = _hits(view, least[:, same], unit).unflatten(0, lead)
        for column, index in enumerate(same):
            hits[index] = rows[:, :, column]
    return statistics.unflatten(0, lead), hits


def variants() -> list[Variant]:
    """Every compiled form, hits for tokens and for chunks of eight."""
    found = []
    for shape in window_triton.built_shapes(narrow=False):
        tile = tile_of(shape[1], shape[0], shape[3])
        blocks: dict[str, Any] = {"heads": None, "BLOCK_W": tile.queries, "BLOCK_N": tile.keys}
        for level in range(3):
            constants = {
                **blocks,
                "LEVEL": level,
                "FIRST": 1 << FIRST_BITS,
                "NEXT": 1 << NEXT_BITS,
            }
            types = {"counts": "*i32", "first_slots": "*i32", "next_slots": "*i32"}
            unused = list(types)[1 + level :]
            constants.update(dict.fromkeys(unused))
            types = {name: kind for name, kind in types.items() if name not in unused}
            name = f"window_statistics digits {level}"
            found.append(window_triton.variant(name, _count_digits, shape, types, constants, tile))
        for room in (1, 8):
            constants = {**blocks, "ROOM": room}
            types = {"limits": "*i32", "hits": "*i32"}
            name = f"window_statistics hits {'tokens' if room == 1 else 'chunks'}"
            found.append(window_triton.variant(name, _count_hits, shape, types, constants, tile))
    return found
