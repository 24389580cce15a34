"""Pages by an upper bound of their logits (Quest)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from catekv import kernels
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.stores.block_reader import BlockReader, Reading, row_bounds


class QuestReader(BlockReader):
    """Reads the pages with the largest bound over the query heads of a group.

    Besides the prefix it holds two keys per page. A soft cap or a sink changes no order of the
    bounds.
    """

    plain_logits = False

    @classmethod
    def build(cls, prefix: RaggedPrefix, readings: Sequence[Reading | None]) -> QuestReader | None:
        """The store for these readings, all with pages of one size; None if every row would be
        read whole."""
        useful = [
            reading if reading is not None and reading.saves(length) else None
            for reading, (_, length) in zip(readings, prefix.host_rows, strict=True)
        ]
        rows = [row for row, reading in enumerate(useful) if reading is not None]
        if not rows:
            return None
        (page,) = {reading.page for reading in useful if reading is not None}
        bounds = row_bounds(prefix, rows, page)
        tables = {"low": bounds.low, "high": bounds.high, "lengths": bounds.lengths}
        return cls(prefix, useful, tables)

    @staticmethod
    def pages_of(tables: dict[str, Tensor]) -> int:
        return tables["low"].shape[1]

    def scores(self, queries: Tensor, scaling: float) -> Tensor:
        bounds = kernels.PageBounds(size=self.size, **self.tables)
        return kernels.page_scores(queries[:, :, None], bounds).squeeze(1)
