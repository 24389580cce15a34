"""What a method chose of one layer: tokens it keeps, or entries it made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.packing import pack, pack_merged
from catekv.kernels.ragged import Merged, RaggedPrefix


@dataclass(frozen=True, eq=False)
class Selection:
    """Tokens that a method keeps of one layer.

    Attributes:
        keep: bool [batch, kv_heads, tokens], over the columns the caller passed, padding included
            and never kept.
        source_keys, source_values: [batch, kv_heads, tokens, head_dim], what was passed.
        memo: what a method hands from choosing to :meth:`Method.decode_store`, one item per batch
            entry, over its columns without padding.
    """

    keep: Tensor | None
    source_keys: Tensor | None = field(default=None, repr=False)
    source_values: Tensor | None = field(default=None, repr=False)
    memo: tuple[Any, ...] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> Tensor:
        """The kept tokens, bool [batch, kv_heads, tokens]."""
        assert self.keep is not None
        return self.keep

    @cached_property
    def budgets(self) -> Tensor:
        """Entries kept per row, int64 [batch, kv_heads]."""
        return self.tokens.sum(dim=-1)

    def _rows(self, source: Tensor | None, name: str) -> list[list[Tensor]]:
        if source is None:
            raise UserError(f"this selection was made without {name}; pass them to select()")
        return [
            [source[b, h][self.tokens[b, h]] for h in range(source.shape[1])]
            for b in range(source.shape[0])
        ]

    @cached_property
    def keys(self) -> list[list[Tensor]]:
        """Stored keys as ``keys[batch][kv_head]`` [kept, head_dim], in prompt order."""
        return self._rows(self.source_keys, "keys")

    @cached_property
    def values(self) -> list[list[Tensor]]:
        """Stored values as ``values[batch][kv_head]`` [kept, head_dim], in prompt order."""
        return self._rows(self.source_values, "values")

    @property
    def bias(self) -> list[list[Tensor]] | None:
        """Additive logits as ``bias[batch][kv_head]`` [kept], or None where nothing was merged."""
        return None

    def of_heads(self, heads: slice, keys: Tensor, values: Tensor) -> Selection:
        """The part of some heads, whose states are ``keys`` and ``values``."""
        return Selection(self.tokens[:, heads].contiguous(), keys, values)

    def packed(self, keys: Tensor, values: Tensor) -> RaggedPrefix:
        """What was selected of these states, in flat storage."""
        return pack(keys, values, self.tokens)


@dataclass(frozen=True, eq=False)
class MergedSelection(Selection):
    """Entries that a method made of a layer's tokens; ``keep`` is None.

    Attributes:
        merged: one :class:`Merged` per batch entry and KV head.
        stays: which tokens were kept to take the others in, entry by entry; bool [batch, kv_heads,
            tokens], or None where entries are no tokens.
    """

    keep: Tensor | None = None
    merged: Sequence[Sequence[Merged]] = field(default=(), repr=False, kw_only=True)
    stays: Tensor | None = field(default=None, repr=False, kw_only=True)

    @property
    def tokens(self) -> Tensor:
        assert self.stays is not None
        return self.stays

    @cached_property
    def budgets(self) -> Tensor:
        return torch.tensor([[row.keys.shape[0] for row in rows] for rows in self.merged])

    @cached_property
    def keys(self) -> list[list[Tensor]]:
        return [[row.keys for row in rows] for rows in self.merged]

    @cached_property
    def values(self) -> list[list[Tensor]]:
        return [[row.values for row in rows] for rows in self.merged]

    @cached_property
    def bias(self) -> list[list[Tensor]] | None:
        if all(row.bias is None for rows in self.merged for row in rows):
            return None
        return [
            [r.keys.new_zeros(r.keys.shape[0]) if r.bias is None else r.bias for r in rows]
            for rows in self.merged
        ]

    def of_heads(self, heads: slice, keys: Tensor, values: Tensor) -> Selection:
        stays = None if self.stays is None else self.stays[:, heads].contiguous()
        merged = [rows[heads] for rows in self.merged]
        return MergedSelection(None, keys, values, merged=merged, stays=stays)

    def packed(self, keys: Tensor, values: Tensor) -> RaggedPrefix:
        return pack_merged(self.merged)


def joined(
    parts: Sequence[Selection], keys: Tensor, values: Tensor, valid: Tensor | None = None
) -> Selection:
    """Selections of single sequences as one of the batch.

    Args:
        keys, values: [batch, kv_heads, tokens, head_dim], of the batch.
        valid: bool [batch, tokens], where a column belongs to a part; None: all of them.
    """
    if valid is None:
        valid = torch.ones(len(parts), keys.shape[2], dtype=torch.bool, device=keys.device)
    columns: Tensor = valid

    def padded(masks: Sequence[Tensor]) -> Tensor:
        whole = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
        for b, mask in enumerate(masks):
            whole[b][:, columns[b]] = mask[0]
        return whole

    memo = None if parts[0].memo is None else tuple(part.memo[0] for part in parts if part.memo)
    if not any(isinstance(part, MergedSelection) for part in parts):
        return Selection(padded([part.tokens for part in parts]), memo=memo)
    merging = as_merged(
        [
            part
            if isinstance(part, MergedSelection)
            else dataclasses.replace(
                part,
                source_keys=keys[b : b + 1, :, columns[b]],
                source_values=values[b : b + 1, :, columns[b]],
            )
            for b, part in enumerate(parts)
        ]
    )
    return MergedSelection(
        memo=memo,
        merged=[part.merged[0] for part in merging],
        stays=None if merging[0].stays is None else padded([part.tokens for part in merging]),
    )


def as_merged(parts: Sequence[Selection]) -> list[MergedSelection]:
    """Selections of single sequences, all of them merged ones: a method may leave a short sequence
    as it is and replace the tokens of a longer one."""
    staying = any(isinstance(part, MergedSelection) and part.stays is not None for part in parts)
    return [
        part
        if isinstance(part, MergedSelection)
        else MergedSelection(
            memo=part.memo,
            merged=[
                [Merged(*row) for row in zip(*rows, strict=True)]
                for rows in zip(part.keys, part.values, strict=True)
            ],
            stays=part.keep if staying else None,
        )
        for part in parts
    ]
