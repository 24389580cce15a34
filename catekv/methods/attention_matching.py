"""Attention Matching (Zweiger et al., 2026): compact keys, biases and refitted values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.ragged import Merged
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.attention_match import SCORES, Matched
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.selection import MergedSelection


@register
@dataclass(frozen=True)
class AttentionMatching(Budgeted):
    """Keep the most attended keys, with biases and values under which sample queries see the same.

    The last ``window`` prompt queries of a head's group are the sample: their softmax weights score
    the keys, a least-squares fit gives every kept key a factor of its weight such that the mass of
    all keys is met, and another one values such that outputs are. First and last tokens stay as
    they are. The sample should be several times larger than the budget.

    Args:
        budget: mean entries kept per head besides the first and last tokens.
        total: entries of all layers and heads together, instead of ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        window: last prompt queries in the sample.
        sinks, recent: first and last tokens that stay as they are.
        score: of a key, over all queries: ``rms``, ``max`` or ``mean`` of its weights.
        low, high: range of the bias, in the logits' unit.
        steps: of projected gradient descent behind the clamped fit of the biases.
    """

    name: ClassVar[str] = "attention_matching"
    example = Example({"budget": 10, "window": 24, "sinks": 2, "recent": 4}, original=False)
    memory_formula = MemoryFormula("budget + sinks + recent", "kept*(e + 4)", besides="4*kept")
    paper: ClassVar[str] = "Fast KV Compaction via Attention Matching, 2026 (arXiv 2602.16284)"
    edges_option: ClassVar[str] = "recent"

    budgets: Any = method_option(None, convert=budgets_from)
    window: int = method_option(1024, least=1)
    sinks: int = method_option(4, least=0)
    recent: int = method_option(32, least=0)
    score: str = method_option("rms", words=SCORES)
    low: float = -3.0
    high: float = 3.0
    steps: int = method_option(2, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise UserError(f"{self.name}: low {self.low} is above high {self.high}")

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def edges(self) -> int:
        return self.sinks + self.recent

    def select_observed(self, observed: Observed) -> Selection:
        keys, counts = observed.keys, self.counts_of(observed).tolist()
        batch, heads, tokens = keys.shape[:3]
        between = tokens - self.edges()
        if min(counts) >= between:
            return Selection(torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device))
        stays = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
        merged = []
        for b in range(batch):
            rows = [self._row(observed, b, head, counts[head]) for head in range(heads)]
            merged.append([row for row, _ in rows])
            for head, (_, kept) in enumerate(rows):
                stays[b, head, kept] = True
        return MergedSelection(merged=merged, stays=stays)

    def _row(self, observed: Observed, b: int, head: int, count: int) -> tuple[Merged, Tensor]:
        """The entries of one head, and which tokens they were."""
        keys, values = observed.keys[b, head], observed.values[b, head]
        places = torch.arange(len(keys), device=keys.device)
        first, last = places[: self.sinks], places[max(self.sinks, len(keys) - self.recent) :]
        own = slice(len(first), len(keys) - len(last))
        middle = places[own]
        bias = torch.zeros(len(keys), device=keys.device)
        if count < len(middle):
            group = slice(head * observed.group, (head + 1) * observed.group)
            queries = observed.queries[b, group].float() * observed.plain_scaling(self.name)
            seen = places[len(keys) - queries.shape[1] :] - len(first)
            # queries before the compacted keys see none of them
            queries, seen = queries[:, seen >= 0], seen[seen >= 0]
            sample = queries.flatten(0, 1), seen.repeat(queries.shape[0])
            matched = Matched.of(*sample, keys[own], values[own], self.score)
            middle = top_mask(matched.scores, torch.tensor(count)).nonzero().flatten()
            bias[middle + len(first)], fitted = matched.fit(
                keys[own], middle, self.low, self.high, self.steps
            )
            middle = middle + len(first)
            values = values.clone()
            values[middle] = fitted.to(values.dtype)
        kept = torch.cat([first, middle, last])
        return Merged(keys[kept], values[kept], bias[kept]), kept
