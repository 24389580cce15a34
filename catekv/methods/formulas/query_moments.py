"""Mean and covariance of a prompt's queries before their rotation, added up as the prompt comes in:
the queries themselves would take as much memory as a layer's keys and values several times over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from catekv.models.rotation import Rotation

#: Tokens at a prompt's beginning whose queries are kept as they are, so that they can be left out.
FIRST = 64
#: Columns that are turned back at once: 16 MiB of 32 heads of 128 numbers.
_COLUMNS = 1024


@dataclass(eq=False)
class QueryMoments:
    """What has been added up, in float32.

    Attributes:
        count: int64 [batch], queries so far, padding not counted.
        total: [batch, query_heads, head_dim], their sum.
        products: [batch, query_heads, head_dim, head_dim], the sum of their outer products.
        first: [batch, query_heads, FIRST, head_dim], those of the first tokens; zero where there
            are none.
    """

    count: Tensor
    total: Tensor
    products: Tensor
    first: Tensor

    @classmethod
    def none_yet(cls, queries: Tensor) -> QueryMoments:
        """Nothing, for queries of this batch, heads, head_dim and device."""
        batch, heads, _, dim = queries.shape
        new = torch.zeros(batch, heads, dim, dim + FIRST + 1, device=queries.device)
        return cls(
            torch.zeros(batch, dtype=torch.int64, device=queries.device),
            new[..., 0].clone(),
            new[..., 1 : dim + 1].clone(),
            new[..., dim + 1 :].transpose(2, 3).clone(),
        )

    def add(self, queries: Tensor, rotation: Rotation, valid: Tensor | None = None) -> None:
        """Count the next tokens of every prompt.

        Args:
            queries: [batch, query_heads, tokens, head_dim], post-rotary.
            rotation: turns them back.
            valid: bool [batch, tokens], False on padding; None: no padding.
        """
        for start in range(0, queries.shape[2], _COLUMNS):
            part = queries[:, :, start : start + _COLUMNS].float()
            there = part.new_ones(part.shape[0], part.shape[2]).bool()
            if valid is not None:
                there = valid[:, start : start + _COLUMNS]
            positions = self.count[:, None] + there.cumsum(dim=1) - 1
            part = rotation.unrotate(part, positions[:, None]) * there[:, None, :, None]
            self.total += part.sum(dim=2)
            self.products += part.transpose(2, 3) @ part
            for b, columns in enumerate(there & (positions < FIRST)):
                self.first[b, :, positions[b, columns]] = part[b, :, columns]
            self.count += there.sum(dim=1)

    def without_first(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Mean [batch, query_heads, head_dim] and covariance [batch, query_heads, head_dim,
        head_dim] (divided by the count) of all queries but those of the first ``tokens`` tokens, at
        most ``FIRST``."""
        left_out = self.first[:, :, :tokens]
        count = (self.count - tokens).clamp(min=1)[:, None, None]
        mean = (self.total - left_out.sum(dim=2)) / count
        products = (self.products - left_out.transpose(2, 3) @ left_out) / count[..., None]
        return mean, products - mean.unsqueeze(-1) * mean.unsqueeze(-2)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.count, self.total, self.products, self.first

    def rows(self, which: slice | Tensor) -> QueryMoments:
        """Those of some sequences of the batch."""
        return QueryMoments(*(tensor[which] for tensor in self.tensors()))
