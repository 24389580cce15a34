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
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register

#: numbers of float32 keys that are held at once: 128 MiB, one head of 256K tokens
_FLOATS = 1 << 25


def key_differences(units: Tensor) -> Tensor:
    """Negative cosine of keys of length 1 [..., tokens, head_dim] to their mean: [..., tokens]."""
    anchor = F.normalize(units.mean(dim=-2), dim=-1)
    return -(units @ anchor.unsqueeze(-1)).squeeze(-1)


def kept_block_by_block(units: Tensor, count: int, block: int) -> Tensor:
    """Positions [rows, count], ascending, of the keys that are left of [rows, tokens, head_dim]
    when every ``block`` of keys after the first ``count`` joins what is held and the rest has to
    leave."""
    rows, tokens, dim = units.shape
    positions = torch.arange(tokens, device=units.device).expand(rows, tokens)
    first = tokens * torch.arange(rows, device=units.device)[:, None]
    held = positions[:, :count]
    for start in range(count, tokens, block):
        joined = torch.cat([held, positions[:, start : start + block]], dim=1)
        # whole keys are copied at once, which gathering numbers is several times slower at
        there = units.view(-1, dim).index_select(0, (first + joined).flatten())
        scores = key_differences(there.view(rows, -1, dim))
        held = joined[top_mask(scores, torch.tensor(count))].view(rows, count)
    return held


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
        keep = torch.zeros(keys.shape[:2], dtype=torch.bool, device=keys.device)
        counts = self.layer_counts(observed).repeat(batch)
        together = max(1, _FLOATS // (tokens * dim))
        for count in counts.unique().tolist():
            for rows in (counts == count).nonzero()[:, 0].to(keys.device).split(together):
                units = F.normalize(keys[rows].float(), dim=-1)
                held = kept_block_by_block(units, min(count, tokens), self.block)
                keep[rows] = keep[rows].scatter(1, held, True)
        return Selection(keep.view(batch, heads, tokens))
