"""KeyDiff (Park et al., 2025): the tokens whose keys differ most from the mean key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.methods.base import Observed, Selection
from catekv.methods.entry_scored import EntryScored
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.options import method_option
from catekv.methods.registry import register

#: Numbers of float32 keys that are held at once: 64 MiB, 128K of one head.
_FLOATS = 1 << 24


def key_differences(units: Tensor) -> Tensor:
    """Negative cosine of keys of length 1 [..., tokens, head_dim] to their mean: [..., tokens]."""
    anchor = F.normalize(units.mean(dim=-2, keepdim=True), dim=-1)
    # on a CPU keys times a column would take several times as long
    return -(anchor @ units.transpose(-1, -2)).squeeze(-2)


def kept_block_by_block(keys: Tensor, rows: Tensor, count: int, block: int) -> Tensor:
    """Which keys of some ``rows`` of [all rows, tokens, head_dim] are left when every ``block`` of
    keys after the first ``count``, at least one less than the tokens, joins what is held and the
    rest has to leave: bool [rows, tokens]."""
    tokens, dim = keys.shape[1:]
    block = min(block, tokens - count)
    # keys that join take the places of those that left
    places = torch.arange(count + block, device=keys.device).repeat(len(rows), 1)
    first = places.shape[1] * torch.arange(len(rows), device=keys.device)[:, None]
    positions, leaving = places.clone(), places[:, count:]
    held = torch.zeros(*places.shape, dim, device=keys.device)
    held[:, :count] = F.normalize(keys[rows, :count].float(), dim=-1)
    for start in range(count, tokens, block):
        # zeros behind the last key change no mean's direction, and leave first
        joining = held.new_zeros(len(rows), block, dim)
        joined = F.normalize(keys[rows, start : start + block].float(), dim=-1)
        joining[:, : joined.shape[1]] = joined
        held.view(-1, dim).index_copy_(0, (first + leaving).flatten(), joining.view(-1, dim))
        positions.scatter_(1, leaving, places[:, :block] + start)
        scores = key_differences(held).masked_fill(positions >= tokens, -torch.inf)
        leaving = lowest(scores, positions, block)
    keep = torch.zeros(len(rows), tokens + block, dtype=torch.bool, device=keys.device)
    keep.scatter_(1, positions, True).scatter_(1, positions.gather(1, leaving), False)
    return keep[:, :tokens]


def lowest(scores: Tensor, positions: Tensor, count: int) -> Tensor:
    """Places of the ``count`` lowest of float32 scores [rows, places], ties from the highest
    position on, which are int64 of their shape: int64 [rows, count]."""
    bits = (scores + 0.0).view(torch.int32)  # 0 for -0, too
    # as whole numbers in the order of the scores, with room for positions
    ordered = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32
    return (ordered - positions).topk(count, largest=False).indices


@register
@dataclass(frozen=True)
class KeyDiff(EntryScored):
    """Keep ``budget`` tokens per head: those whose keys are least like the mean of all keys.

    A token's score is the negative cosine of its rotated key to the mean of the keys scaled to
    length 1 (float32). No query is looked at and no token is certain. As published the prompt comes
    in blocks and the budget holds from the start: what leaves does not count in later means.

    Args:
        budget: mean tokens kept per head.
        total: entries of all layers and heads together, instead of ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        block: tokens that join at a time; 0: all tokens are compared at once.
    """

    name: ClassVar[str] = "keydiff"
    example = Example({"budget": 12, "block": 5})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = (
        "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in "
        "Resource-Constrained Environments, 2025"
    )

    block: int = method_option(128, least=0)

    def entry_scores(self, observed: Observed) -> Tensor:
        keys = observed.keys
        # one head at a time in float32, which bounds the memory of long prompts
        rows = [key_differences(F.normalize(row.float(), dim=-1)) for row in keys.flatten(0, 1)]
        return torch.stack(rows).view(keys.shape[:3])

    def select_observed(self, observed: Observed) -> Selection:
        if not self.block:
            return super().select_observed(observed)
        batch, heads, tokens, dim = observed.keys.shape
        keys = observed.keys.flatten(0, 1)
        keep = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
        counts = self.layer_counts(observed).repeat(batch)
        for count in counts[counts < tokens].unique().tolist():
            together = max(1, _FLOATS // ((count + self.block) * dim))
            for rows in (counts == count).nonzero()[:, 0].to(keys.device).split(together):
                keep[rows] = kept_block_by_block(keys, rows, count, self.block)
        return Selection(keep.view(batch, heads, tokens))
