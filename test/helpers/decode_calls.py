"""Arguments of the decode kernels for every form of a call, by the numbers that tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.logits import LogitForm
from catekv.kernels.ragged import BlockList, RaggedPrefix, from_rows


@dataclass(frozen=True)
class DecodeCall:
    """One call.

    Attributes:
        lengths: of rows in (sequence, KV head) order. dim, value_dim: of heads.
        tail: columns in use, of ``capacity`` where the device knows their number.
        hidden: columns of the first sequence's tail that are padding.
        blocks: whether only a part of the prefix is read.
    """

    lengths: tuple[int, ...]
    kv_heads: int = 3
    group: int = 2
    dim: int = 64
    value_dim: int = 64
    query_tokens: int = 1
    tail: int = 5
    dtype: torch.dtype = torch.float32
    bias: bool = False
    hidden: int = 0
    capacity: int | None = None
    blocks: bool = False
    softcap: float | None = None
    sinks: bool = False

    def prefix(
        self, normal: Callable[..., Tensor], logits: Tensor | None, rows: list[tuple[int, int]]
    ) -> Any:
        """What is read, from random numbers."""
        return self.plain(normal(sum(self.lengths), self.dim), normal, logits, rows)

    def plain(
        self,
        keys: Tensor,
        normal: Callable[..., Tensor],
        logits: Tensor | None,
        rows: list[tuple[int, int]],
    ) -> RaggedPrefix:
        return from_rows(keys, normal(len(keys), self.value_dim), logits, rows, self.kv_heads)

    def arguments(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(11)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        batch = len(self.lengths) // self.kv_heads
        rows, start = [], 0
        for length in self.lengths:
            rows.append((start, length))
            start += length
        logits = torch.randn(start, generator=generator) if self.bias else None
        prefix = self.prefix(normal, logits, rows)
        columns = self.capacity or self.tail
        # as a projection leaves them: tokens before heads in memory
        queries = normal(batch, self.query_tokens, self.kv_heads * self.group, self.dim)
        mask = None
        if self.hidden:
            mask = torch.ones(batch, 1, 1, columns, dtype=torch.bool)
            mask[0, ..., : self.hidden] = False
        chosen = self._listed(generator) if self.blocks else None
        return {
            "queries": queries.transpose(1, 2),
            "prefix": prefix,
            "tail_keys": normal(batch, self.kv_heads, columns, self.dim),
            "tail_values": normal(batch, self.kv_heads, columns, self.value_dim),
            "scaling": self.dim**-0.5,
            "tail_mask": mask,
            "tail_length": (
                torch.tensor([self.tail], dtype=torch.int32) if self.capacity else None
            ),
            "blocks": chosen,
            "form": LogitForm(
                self.softcap,
                2 * normal(self.kv_heads * self.group).float() if self.sinks else None,
            ),
        }

    def _listed(self, generator: torch.Generator) -> BlockList:
        indices = torch.stack([torch.randperm(13, generator=generator)[:5] for _ in self.lengths])
        counts = torch.randint(0, 6, (len(self.lengths),), generator=generator)
        return BlockList(indices.int(), counts.int(), 16)
