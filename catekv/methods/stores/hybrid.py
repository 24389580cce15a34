"""Pages by their extreme keys on the most telling dimensions (RocketKV's second stage)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.kernels.page_bounds import best_first
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.stores.block_reader import BlockReader, Reading, product, row_bounds


@dataclass(frozen=True)
class Refilter:
    """How the candidates of a row are chosen anew by every question: the ``tokens`` best ones by
    the attention of its last ``window`` queries, pooled over ``kernel`` neighbours."""

    tokens: int
    window: int
    kernel: int
    pooling: str


@dataclass(frozen=True)
class HybridReading(Reading):
    """A :class:`Reading` that looks at ``dims`` dimensions of a head."""

    dims: int = 1
    refilter: Refilter | None = None


def telling_dimensions(queries: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """The dimensions in which the queries of a group are largest, ``sum |q|``, largest first; ties
    go to the lower one.

    Args:
        queries: [rows, group, head_dim].

    Returns:
        int64 [rows, dims], and bool [rows, dims]: whether the sum of the queries is not negative
        there, so that the largest key gives the largest logit.
    """
    size = queries.float().abs().sum(dim=1)
    chosen = best_first(size, dims)
    return chosen, queries.float().sum(dim=1).gather(1, chosen) >= 0


def hybrid_logits(queries: Tensor, bounds: Tensor, dims: int, used: Tensor | None = None) -> Tensor:
    """Approximate products of queries with the pages, float32 [rows, group, pages].

    Args:
        queries: [rows, group, head_dim].
        bounds: [rows, 2 * head_dim, pages]: the largest keys of the pages, then the smallest.
        dims: dimensions to look at.
        used: int64 [rows, 1]: rows that look at fewer of them; None: all alike.
    """
    chosen, positive = telling_dimensions(queries, dims)
    source = torch.where(positive, chosen, chosen + queries.shape[-1])
    extremes = bounds.gather(1, source[..., None].expand(-1, -1, bounds.shape[-1]))
    parts = queries.gather(2, chosen[:, None].expand(-1, queries.shape[1], -1))
    if used is not None:
        rank = torch.arange(dims, device=queries.device)
        parts = parts.masked_fill((rank >= used)[:, None], 0)
    return product(parts, extremes)


def page_probability(logits: Tensor, scaling: float, hidden: Tensor | None = None) -> Tensor:
    """Softmax over the pages, mean over the group.

    Args:
        logits: [rows, group, pages] without scaling.
        hidden: bool [rows, pages], pages that do not take part.

    Returns:
        float32 [rows, pages].
    """
    logits = logits * scaling
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None], -torch.inf)
    return logits.softmax(dim=-1).mean(dim=1)


class HybridReader(BlockReader):
    """Reads the pages with the largest approximate probability.

    Besides the prefix it holds two keys per page, laid out by dimension, because a step looks at a
    few dimensions of all pages.
    """

    def __init__(
        self,
        prefix: RaggedPrefix,
        readings: Sequence[Reading | None],
        tables: dict[str, Tensor],
    ):
        super().__init__(prefix, readings, tables)
        # a question changes what later steps read
        self.absorbs = "candidates" in tables

    @classmethod
    def build(
        cls,
        prefix: RaggedPrefix,
        readings: Sequence[HybridReading | None],
        keep: Sequence[Tensor] | None = None,
    ) -> HybridReader | None:
        """The store for these readings; None if every row would be read whole.

        Args:
            keep: bool [entries] of every row: those whose pages may be read; None: all.
        """
        useful = [
            reading if reading is not None and reading.saves(length) else None
            for reading, (_, length) in zip(readings, prefix.host_rows, strict=True)
        ]
        if not any(useful):
            return None
        scored = [(row, reading) for row, reading in enumerate(useful) if reading is not None]
        # prompts of different lengths in one batch have pages of different size
        extremes = [row_bounds(prefix, [row], reading.page) for row, reading in scored]
        pages, dim = max(bounds.pages for bounds in extremes), prefix.keys.shape[-1]
        tables = {"bounds": prefix.keys.new_zeros(len(scored), 2 * dim, pages)}
        for table, bounds in zip(tables["bounds"], extremes, strict=True):
            table[:dim, : bounds.pages] = bounds.high[0].T
            table[dim:, : bounds.pages] = bounds.low[0].T
        tables["used"] = torch.tensor(
            [[reading.dims] for _, reading in scored], device=prefix.keys.device
        )
        if keep is not None:
            # questions write into it, also outside of inference mode
            with torch.inference_mode(False):
                shape = (len(scored), pages)
                candidates = torch.zeros(shape, dtype=torch.bool, device=prefix.keys.device)
            for number, (row, reading) in enumerate(scored):
                kept = pages_with(keep[row], reading.page)
                candidates[number, : len(kept)] = kept
            tables["candidates"] = candidates
        return cls(prefix, useful, tables)

    @staticmethod
    def pages_of(tables: dict[str, Tensor]) -> int:
        return tables["bounds"].shape[-1]

    def scores(self, queries: Tensor, scaling: float) -> Tensor:
        dims = max(r.dims for r in self.readings if isinstance(r, HybridReading))
        hidden = self.missing
        if "candidates" in self.tables:
            hidden = ~self.tables["candidates"]
        logits = hybrid_logits(queries, self.tables["bounds"], dims, self.tables["used"])
        return page_probability(logits, scaling, hidden)

    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        if queries.shape[2] == 1 or "candidates" not in self.tables:
            return 0
        heads = self.prefix.kv_heads
        grouped = queries.unflatten(1, (heads, -1))
        for number, row in enumerate(self.rows.tolist()):
            reading = self.readings[row]
            assert isinstance(reading, HybridReading)
            assert reading.refilter is not None
            b, head = divmod(row, heads)
            seen = slice(None) if visible is None else visible[b]
            asked = slice(None) if visible is None else visible[b, -queries.shape[2] :]
            kept = _question_tokens(
                grouped[b, head][:, asked],
                self.prefix.row(b, head)[0],
                keys[b, head][seen],
                scaling,
                reading.refilter,
            )
            pages = pages_with(kept, reading.page)
            self.tables["candidates"][number, : len(pages)].copy_(pages)
        return 0

    def __deepcopy__(self, memo: dict[int, Any]) -> HybridReader:
        if "candidates" not in self.tables:
            return self
        with torch.inference_mode(False):
            candidates = self.tables["candidates"].clone()
        return type(self)(self.prefix, self.readings, {**self.tables, "candidates": candidates})


def pages_with(keep: Tensor, page: int) -> Tensor:
    """Pages that hold a kept entry: bool [entries] -> bool [ceil(entries / page)]."""
    return F.pad(keep, (0, -len(keep) % page)).view(-1, page).any(dim=1)


def _question_tokens(
    queries: Tensor, keys: Tensor, tail: Tensor, scaling: float, refilter: Refilter
) -> Tensor:
    """Entries of one row that the last queries of a question look at most, bool [entries].

    Args:
        queries: [group, tokens, head_dim] without padding; the last ones of the tail.
        keys: [entries, head_dim], the row's prefix; tail: [tail, head_dim] without padding.
    """
    queries = queries[:, -refilter.window :].float()
    window = queries.shape[1]
    everything = torch.cat([keys.float(), tail.float()])
    logits = queries @ everything.T * scaling
    last = torch.arange(len(everything) - window, len(everything), device=keys.device)
    hidden = torch.arange(len(everything), device=keys.device) > last[:, None]
    weights = logits.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
    scores = weights[..., : len(keys)].mean(dim=(0, 1))[None]
    if refilter.kernel > 1:
        pool = F.max_pool1d if refilter.pooling == "max" else F.avg_pool1d
        scores = pool(scores, refilter.kernel, stride=1, padding=refilter.kernel // 2)
    best = scores[0].sort(descending=True, stable=True).indices[: refilter.tokens]
    return torch.zeros(len(keys), dtype=torch.bool, device=keys.device).index_fill(0, best, True)
