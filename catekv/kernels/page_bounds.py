"""Bounds of the logits of whole pages (Quest): the definition, which is also the torch path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.kernels.ragged import BlockList, RaggedPrefix

REDUCTIONS = ("max", "mean", "sum")


@dataclass(frozen=True, eq=False)
class PageBounds:
    """The smallest and the largest key of every page of ``size`` neighbouring entries of a row.

    ``low`` and ``high`` [rows, pages, head_dim] are in the dtype of the keys; rows are in (batch,
    head) order, ``pages`` are those of the longest row, and pages that a row does not have hold
    zeros. ``lengths`` int32 [batch, kv_heads] are the entries of the rows.
    """

    low: Tensor
    high: Tensor
    lengths: Tensor
    size: int

    @property
    def pages(self) -> int:
        return self.low.shape[1]

    def tensors(self) -> list[Tensor]:
        return [self.low, self.high, self.lengths]


def empty_bounds(prefix: RaggedPrefix, size: int) -> PageBounds:
    """Bounds of a prefix with undefined contents."""
    longest = max((length for _, length in prefix.host_rows), default=0)
    shape = (len(prefix.host_rows), -(-longest // size), prefix.keys.shape[-1])
    low = torch.empty(shape, dtype=prefix.keys.dtype, device=prefix.keys.device)
    return PageBounds(low, torch.empty_like(low), prefix.lengths, size)


def page_bounds_torch(prefix: RaggedPrefix, size: int) -> PageBounds:
    """Arguments as in :func:`catekv.kernels.page_bounds`."""
    bounds = empty_bounds(prefix, size)
    bounds.low.zero_()
    bounds.high.zero_()
    for row, (start, length) in enumerate(prefix.host_rows):
        keys = prefix.keys[start : start + length]
        whole = length // size
        if whole:
            pages = keys[: whole * size].unflatten(0, (whole, size))
            bounds.low[row, :whole] = pages.amin(dim=1)
            bounds.high[row, :whole] = pages.amax(dim=1)
        if length % size:
            bounds.low[row, whole] = keys[whole * size :].amin(dim=0)
            bounds.high[row, whole] = keys[whole * size :].amax(dim=0)
    return bounds


def page_scores_torch(queries: Tensor, bounds: PageBounds, reduction: str) -> Tensor:
    """Arguments as in :func:`catekv.kernels.page_scores`.

    A positive number of a query takes the largest key, a negative one the smallest: two products
    instead of a maximum over every pair of products.
    """
    batch, kv_heads = bounds.lengths.shape
    rows, pages, head_dim = bounds.low.shape
    flat = queries.unflatten(1, (kv_heads, -1)).reshape(rows, -1, head_dim).float()
    found = flat.clamp(min=0) @ bounds.high.float().transpose(1, 2)
    found += flat.clamp(max=0) @ bounds.low.float().transpose(1, 2)
    scores = found.amax(dim=1) if reduction == "max" else found.sum(dim=1)
    if reduction == "mean":
        scores /= flat.shape[1]
    first = torch.arange(pages, device=queries.device) * bounds.size
    missing = first >= bounds.lengths.view(rows, 1)
    return scores.masked_fill_(missing, -torch.inf).view(batch, kv_heads, pages)


def best_first(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest scores of every row, best first, ties to the lower index.

    A top-k over integers that hold the score and, below it, the index: much less work on a GPU than
    a stable sort of long rows, and as exact.

    Args:
        scores: float32 [rows, entries], no NaN.

    Returns:
        int64 [rows, count].
    """
    entries = scores.shape[-1]
    bits = (scores + 0.0).view(torch.int32)  # the sum makes -0 a 0
    # integers in the order of the floats: negative ones have their other bits turned over
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    index = torch.arange(entries, device=scores.device)
    best = ((ordered << 32) + (entries - 1 - index)).topk(count, dim=-1).values
    return entries - 1 - (best & 0xFFFFFFFF)


def top_pages(
    scores: Tensor, counts: int | Tensor, size: int, capacity: int | None = None
) -> BlockList:
    """The pages with the highest scores of every row, ties to the earlier page, as a block list for
    ``ragged_decode``.

    Nothing waits for the device, and the list has a fixed capacity (CUDA graphs).

    Args:
        scores: float32 [batch, kv_heads, pages], -inf for pages that a row does not have.
        counts: pages to read: one number, or integers [batch, kv_heads] on the device.
        size: entries per page.
        capacity: room of the list; default ``counts`` if that is one number, else all pages.

    Returns:
        Pages in descending order of their scores; a row with fewer pages lists those it has.
    """
    pages = scores.shape[-1]
    if capacity is None:
        capacity = counts if isinstance(counts, int) else pages
    capacity = min(capacity, pages)
    flat = scores.reshape(-1, pages)
    there = (flat > -torch.inf).sum(dim=-1).clamp(max=capacity)
    if isinstance(counts, int):
        taken = there.clamp_max(counts)
    else:
        taken = torch.minimum(there, counts.reshape(-1))
    return BlockList(best_first(flat, capacity).to(torch.int32), taken.to(torch.int32), size)
