"""A prefix that takes the tail in and is merged again every so many tokens."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.kernels.ragged import RaggedPrefix, pack_merged
from catekv.methods.simcalkv.merge import merge_row, removal_order
from catekv.methods.stores.base import WholePrefix

if TYPE_CHECKING:
    from catekv.models.shape import ModelShape

    from catekv.kernels.ragged import Merged
    from catekv.methods.simcalkv.method import SimCalKV


class RemergeStore(WholePrefix):
    """The merged prefix of SimCalKV, rebuilt with the tail once that holds enough tokens.

    Entries are then scored by the attention of the newest query, and merged until a row holds what
    the method's budget says for all tokens seen.

    Args:
        prefix: what prefill left; immutable, so that copies share it.
        method: the options.
        seen: tokens of each sequence so far, without padding.
        layer, shape: which layer of which model, for budgets that differ.
    """

    def __init__(
        self,
        prefix: RaggedPrefix,
        method: SimCalKV,
        seen: list[int],
        layer: int,
        shape: ModelShape,
    ):
        self.prefix = prefix
        self.method = method
        self.seen = seen
        self.layer = layer
        self.shape = shape

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        tail = keys.shape[2]
        if tail < self.method.remerge_every:
            return 0
        batch, heads = keys.shape[:2]
        newest = queries[:, :, -1].unflatten(1, (heads, -1)).float() * scaling
        merged: list[list[Merged]] = []
        for b in range(batch):
            new_keys, new_values = keys[b], values[b]
            if visible is not None:
                new_keys, new_values = new_keys[:, visible[b]], new_values[:, visible[b]]
            self.seen[b] += new_keys.shape[1]
            kept = self.method.budget_table(self.seen[b], self.shape)[self.layer].tolist()
            merged.append(
                [
                    self._merge(
                        b, head, new_keys[head], new_values[head], newest[b, head], kept[head]
                    )
                    for head in range(heads)
                ]
            )
        self.prefix = pack_merged(merged)
        return tail

    def _merge(
        self, b: int, head: int, new_keys: Tensor, new_values: Tensor, query: Tensor, kept: int
    ) -> Merged:
        """Merge one row and its tail; ``query`` [group, head_dim] is scaled."""
        method = self.method
        keys, values, bias = self.prefix.row(b, head)
        keys, values = torch.cat([keys, new_keys]), torch.cat([values, new_values])
        log_counts = query.new_zeros(len(keys))
        if bias is not None:
            log_counts[: len(bias)] = bias
        logits = query @ keys.float().T
        scores = (logits + log_counts).softmax(dim=-1).mean(dim=0)
        count = max(0, len(keys) - kept)
        removed = removal_order(scores, count, method.protect_initial, method.protect_recent)
        return method.entries(
            merge_row(keys, values, logits.mean(dim=0), removed, method.rule, log_counts)
        )

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        return self.prefix.tensors()

    def select_rows(self, indices: list[int]) -> RemergeStore:
        chosen = copy.copy(self)
        chosen.prefix = self.prefix.select_rows(indices)
        chosen.seen = [self.seen[b] for b in indices]
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> RemergeStore:
        return self.select_rows(list(range(self.prefix.batch)))
