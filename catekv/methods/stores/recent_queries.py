"""The newest queries of a layer, kept while decoding for methods that score by them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class RecentQueries:
    """A place for ``window`` queries of every sequence, written round and round.

    Queries are kept rotated, as attention used them. Where the query of a token goes follows from
    its column in the tail alone, so that a recorded decode step, whose tail length only the device
    knows, can write it.

    Args:
        queries: [batch, query_heads, at most window, head_dim], the newest of the prompts.
        known: of each sequence, how many of them are not padding.
        window: at least 1.
    """

    def __init__(self, queries: Tensor, known: Sequence[int], window: int):
        batch, heads, there, dim = queries.shape
        self.known = [min(count, there) for count in known]
        #: columns of the tail that were counted here; those of recorded steps follow them
        self.columns = 0
        # written to within and outside of inference mode
        with torch.inference_mode(False), torch.no_grad():
            self.states = queries.new_zeros(batch, heads, window, dim)
            self.states[:, :, :there] = queries
            #: int64 [batch], the place of column 0, and for column c that of c places later
            self.base = torch.full((batch,), there, dtype=torch.int64, device=queries.device)

    @property
    def window(self) -> int:
        return self.states.shape[2]

    def add(self, queries: Tensor, tail: int, visible: Tensor | None) -> None:
        """Keep the queries of a forward.

        Args:
            queries: [batch, query_heads, tokens, head_dim].
            tail: columns of the tail now, these tokens included.
            visible: bool [batch, tokens], False on padding; None: no padding.
        """
        tokens = queries.shape[2]
        # columns whose queries nobody saw take no places
        self.base -= tail - tokens - self.columns
        self.columns = tail
        if visible is None:
            self._write(queries, tail, slice(None))
            self.known = [min(self.window, count + tokens) for count in self.known]
            return
        for b, shown in enumerate(visible):
            own = queries[b : b + 1, :, shown]
            self.base[b] -= tokens - own.shape[2]
            self._write(own, tail, slice(b, b + 1))
            self.known[b] = min(self.window, self.known[b] + own.shape[2])

    def _write(self, queries: Tensor, tail: int, rows: slice) -> None:
        queries = queries[:, :, -self.window :]
        columns = torch.arange(tail - queries.shape[2], tail, device=queries.device)
        self.put(queries, columns, rows)

    def put(self, queries: Tensor, columns: Tensor, rows: slice = slice(None)) -> None:
        """Write queries of some columns, int64 [tokens], without counting them."""
        places = (self.base[rows, None] + columns) % self.window
        index = places[:, None, :, None].expand_as(queries)
        self.states[rows].scatter_(2, index, queries)

    def newest(self, b: int, tail: int) -> Tensor:
        """Those of one sequence in their order, [1, query_heads, at most window, head_dim], when
        the tail has ``tail`` columns."""
        count = min(self.window, self.known[b] + tail - self.columns)
        following = int(self.base[b]) + tail
        ordered = self.states[b : b + 1].roll(-(following % self.window), dims=2)
        return ordered[:, :, self.window - count :]

    def fold(self, tail: int) -> None:
        """The tail's ``tail`` columns are gone; the next column is number 0."""
        self.known = [min(self.window, count + tail - self.columns) for count in self.known]
        self.columns = 0
        self.base = (self.base + tail) % self.window

    def rows(self, indices: Sequence[int]) -> RecentQueries:
        """Those of another batch made of these batch entries."""
        chosen = copy.copy(self)
        with torch.inference_mode(False), torch.no_grad():
            where = torch.tensor(indices, dtype=torch.int64, device=self.states.device)
            chosen.states, chosen.base = self.states[where], self.base[where]
        chosen.known = [self.known[b] for b in indices]
        return chosen

    def tensors(self) -> list[Tensor]:
        return [self.states, self.base]

    def __deepcopy__(self, memo: dict[int, Any]) -> RecentQueries:
        return self.rows(range(len(self.known)))
