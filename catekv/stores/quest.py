"""Pages by an upper bound of their logits (Quest)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catekv.layout import RaggedPrefix
from catekv.stores.block_reader import BlockReader, Reading, page_bounds, product


def quest_bounds(queries: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Upper bounds of the products of queries with the keys of every page.

    ``sum over dimensions of max(q * max, q * min)``: a positive number of the query takes the
    maximum, a negative one the minimum.

    Args:
        queries: [rows, group, head_dim].
        low, high: [rows, pages, head_dim], smallest and largest key of each page.

    Returns:
        float32 [rows, group, pages].
    """
    upper = product(queries.clamp(min=0), high.transpose(1, 2))
    return upper + product(queries.clamp(max=0), low.transpose(1, 2))


class QuestReader(BlockReader):
    """Reads the pages with the largest bound over the query heads of a group.

    Besides the prefix it holds two keys per page.
    """

    @classmethod
    def build(cls, prefix: RaggedPrefix, readings: Sequence[Reading | None]) -> QuestReader | None:
        """The store for these readings; None if every row would be read whole."""
        useful = [
            reading if reading is not None and reading.saves(length) else None
            for reading, (_, length) in zip(readings, prefix.host_rows, strict=True)
        ]
        if not any(useful):
            return None
        low, high = page_bounds(prefix, useful)
        return cls(prefix, useful, {"low": low, "high": high})

    def scores(self, queries: Tensor, scaling: float) -> Tensor:
        bounds = quest_bounds(queries, self.tables["low"], self.tables["high"])
        return torch.amax(bounds, dim=1)
