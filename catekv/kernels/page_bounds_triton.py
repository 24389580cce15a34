"""Smallest and largest key of every page, and the bounds of the logits at every step."""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.page_bounds import PageBounds, empty_bounds
from catekv.kernels.ragged import RaggedPrefix
from catekv.kernels.variant import Variant, signature

#: Entries of a page that are read at a time, at most.
BLOCK_ENTRIES = 32
#: Pages that one program scores.
BLOCK_PAGES = 16


@triton.jit(do_not_specialize=["pages", "size"])
def _page_bounds(
    keys, offsets, lengths, low, high, pages, size,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ENTRIES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // pages
    page = tl.program_id(0) % pages
    length = tl.load(lengths + row)
    offset = tl.load(offsets + row)
    first = page * size
    stop = tl.minimum(first + size, length)
    column = tl.arange(0, BLOCK_D)
    least = tl.full([BLOCK_D], float("inf"), tl.float32)
    most = tl.full([BLOCK_D], float("-inf"), tl.float32)
    for block in range(first, stop, BLOCK_ENTRIES):
        entry = block + tl.arange(0, BLOCK_ENTRIES)
        inside = (entry < stop)[:, None] & (column < HEAD_DIM)[None, :]
        place = (offset + entry)[:, None] * HEAD_DIM + column[None, :]
        tile = tl.load(keys + place, mask=inside, other=0.0).to(tl.float32)
        least = tl.minimum(least, tl.min(tl.where(inside, tile, float("inf")), 0))
        most = tl.maximum(most, tl.max(tl.where(inside, tile, float("-inf")), 0))
    there = first < length
    place = (row.to(tl.int64) * pages + page) * HEAD_DIM + column
    dtype = low.dtype.element_ty
    tl.store(low + place, tl.where(there, least, 0.0).to(dtype), mask=column < HEAD_DIM)
    tl.store(high + place, tl.where(there, most, 0.0).to(dtype), mask=column < HEAD_DIM)


@triton.jit(do_not_specialize=["pages", "size", "blocks", "query_tokens"])
def _page_scores(
    queries, low, high, lengths, scores, pages, size, blocks, kv_heads, query_tokens,
    query_b, query_h, query_t,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_PAGES: tl.constexpr,
    REDUCTION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // blocks
    page = (tl.program_id(0) % blocks) * BLOCK_PAGES + tl.arange(0, BLOCK_PAGES)
    there = page * size < tl.load(lengths + row)
    column = tl.arange(0, BLOCK_D)
    inside = there[:, None] & (column < HEAD_DIM)[None, :]
    place = (row.to(tl.int64) * pages + page)[:, None] * HEAD_DIM + column[None, :]
    least = tl.load(low + place, mask=inside, other=0.0).to(tl.float32)
    most = tl.load(high + place, mask=inside, other=0.0).to(tl.float32)
    batch = (row // kv_heads).to(tl.int64)
    # pointers move step by step: a question may have more than 2^31 numbers
    of_token = queries + batch * query_b + (row % kv_heads).to(tl.int64) * GROUP * query_h
    score = tl.full([BLOCK_PAGES], float("-inf") if REDUCTION == "max" else 0.0, tl.float32)
    for _ in range(query_tokens):
        of_head = of_token
        for _ in range(GROUP):
            query = tl.load(of_head + column, mask=column < HEAD_DIM, other=0.0)
            query = query.to(tl.float32)[None, :]
            bound = tl.sum(tl.maximum(query * most, query * least), 1)
            if REDUCTION == "max":
                score = tl.maximum(score, bound)
            else:
                score += bound
            of_head += query_h
        of_token += query_t
    if REDUCTION == "mean":
        score = score / (GROUP * query_tokens)
    place = row.to(tl.int64) * pages + page
    tl.store(scores + place, tl.where(there, score, float("-inf")), mask=page < pages)


def page_bounds_triton(prefix: RaggedPrefix, size: int) -> PageBounds:
    """Arguments as in :func:`catekv.kernels.page_bounds`."""
    bounds = empty_bounds(prefix, size)
    rows, pages, head_dim = bounds.low.shape
    if bounds.low.numel():
        _page_bounds[(rows * pages,)](
            prefix.keys, prefix.offsets, prefix.lengths, bounds.low, bounds.high, pages, size,
            HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim),
            BLOCK_ENTRIES=min(BLOCK_ENTRIES, triton.next_power_of_2(size)), num_warps=2,
        )  # fmt: skip
    return bounds


def page_scores_triton(queries: Tensor, bounds: PageBounds, reduction: str) -> Tensor:
    """Arguments as in :func:`catekv.kernels.page_scores`."""
    batch, kv_heads = bounds.lengths.shape
    rows, pages, head_dim = bounds.low.shape
    scores = torch.empty(batch, kv_heads, pages, dtype=torch.float32, device=queries.device)
    blocks = triton.cdiv(pages, BLOCK_PAGES)
    if scores.numel():
        _page_scores[(rows * blocks,)](
            queries, bounds.low, bounds.high, bounds.lengths, scores, pages, bounds.size, blocks,
            kv_heads, queries.shape[2], *queries.stride()[:3],
            GROUP=queries.shape[1] // kv_heads, HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_PAGES=BLOCK_PAGES,
            REDUCTION=reduction, num_warps=4,
        )  # fmt: skip
    return scores


def variants() -> list[Variant]:
    """Every compiled form for groups of four and pages of at most 16 entries."""
    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for dim in (64, 96, 128, 256):
            shape = {"HEAD_DIM": dim, "BLOCK_D": triton.next_power_of_2(dim)}
            element, pages = f"*{dtype}", {"low": f"*{dtype}", "high": f"*{dtype}"}
            constants = {**shape, "BLOCK_ENTRIES": 16}
            types = {"keys": element, "offsets": "*i64", "lengths": "*i32", **pages}
            found.append(
                Variant(
                    name=f"page_bounds {dtype} d{dim}",
                    function=_page_bounds,
                    signature=signature(_page_bounds, types, constants),
                    constants=constants,
                    divisible=tuple(types),
                    num_warps=2,
                )
            )
            types = {"queries": element, "lengths": "*i32", "scores": "*fp32", **pages}
            scoring = {**shape, "GROUP": 4, "BLOCK_PAGES": BLOCK_PAGES, "REDUCTION": "max"}
            found.append(
                Variant(
                    name=f"page_scores {dtype} d{dim}",
                    function=_page_scores,
                    signature=signature(_page_scores, types, scoring),
                    constants=scoring,
                    divisible=(*types, "query_b", "query_h", "query_t"),
                    hot=True,
                )
            )
    return found
