"""A prefix that takes the tail in and drops a part of every block that leaves the recent window."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.ragged import Merged, RaggedPrefix, pack_merged
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.pyramidinfer import context_scores
from catekv.methods.stores.base import WholePrefix


@dataclass(frozen=True)
class BlockRule:
    """When and how much is dropped.

    Attributes:
        block: tokens that leave the recent window before a choice is made among them.
        keep: how many of them stay.
        window: queries that score them, at most.
    """

    block: int
    keep: int
    window: int


@dataclass(frozen=True, eq=False)
class Sequence:
    """What is known of one sequence of the batch; the same for all heads of the layer.

    Attributes:
        positions: int64 [entries], ascending.
        queries: [query_heads, queries, head_dim], those of the last tokens.
        seen: tokens so far, without padding. recent: size of the recent window.
        grown: tokens that left the recent window and have not been chosen among.
    """

    positions: Tensor
    queries: Tensor
    seen: int
    recent: int
    grown: int = 0


class BlockStore(WholePrefix):
    """PyramidInfer's context while decoding.

    The recent window keeps its size, so every new token pushes one out of it. Once a block of them
    is out, the recent queries choose which of the block stay. New tokens wait in the tail until
    they fill a block.

    Args:
        prefix: what prefill left; immutable, so that copies share it.
        sequences: one per batch entry.
        rule: see there.
    """

    def __init__(self, prefix: RaggedPrefix, sequences: list[Sequence], rule: BlockRule):
        self.prefix = prefix
        self.sequences = sequences
        self.rule = rule

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        tail, asked = keys.shape[2], queries.shape[2]
        for b, sequence in enumerate(self.sequences):
            new = queries[b]
            if visible is not None:
                new = new[:, visible[b, tail - asked :]]
            joined = torch.cat([sequence.queries, new], dim=1)
            kept = min(self.rule.window, sequence.recent)
            self.sequences[b] = replace(sequence, queries=joined[:, -kept:].clone())
        if tail < self.rule.block:
            return 0
        rows = []
        for b in range(keys.shape[0]):
            new_keys, new_values = keys[b], values[b]
            if visible is not None:
                new_keys, new_values = new_keys[:, visible[b]], new_values[:, visible[b]]
            rows.append(self._extended(b, new_keys, new_values, scaling))
        self.prefix = pack_merged(rows)
        return tail

    def _extended(self, b: int, keys: Tensor, values: Tensor, scaling: float) -> list[Merged]:
        """The rows of one sequence with new tokens, without what full blocks lost of it."""
        held = [self.prefix.row(b, head) for head in range(keys.shape[0])]
        all_keys = torch.cat([torch.stack([row[0] for row in held]), keys], dim=1)
        all_values = torch.cat([torch.stack([row[1] for row in held]), values], dim=1)
        known, count = self.sequences[b], keys.shape[1]
        new = torch.arange(known.seen, known.seen + count, device=keys.device)
        positions = torch.cat([known.positions.to(keys.device), new])
        seen, grown = known.seen + count, known.grown + count
        while grown >= self.rule.block:
            start = len(positions) - known.recent - grown
            scores = context_scores(known.queries * scaling, all_keys, positions, seen)
            stays = torch.ones_like(positions, dtype=torch.bool)
            part = slice(start, start + self.rule.block)
            stays[part] = top_mask(scores[part], torch.tensor(self.rule.keep))
            positions, all_keys, all_values = (
                positions[stays],
                all_keys[:, stays],
                all_values[:, stays],
            )
            grown -= self.rule.block
        self.sequences[b] = replace(known, positions=positions, seen=seen, grown=grown)
        return [Merged(*pair) for pair in zip(all_keys, all_values, strict=True)]

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        own = [part for one in self.sequences for part in (one.positions, one.queries)]
        return self.prefix.tensors() + own

    def select_rows(self, indices: list[int]) -> BlockStore:
        chosen = copy.copy(self)
        chosen.prefix = self.prefix.select_rows(indices)
        chosen.sequences = [self.sequences[b] for b in indices]
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockStore:
        return self.select_rows(list(range(self.prefix.batch)))
