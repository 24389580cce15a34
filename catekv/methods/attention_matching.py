"""Attention Matching (Zweiger et al., 2026): compact keys, biases and refitted values."""

from __future__ import annotations

import math
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

#: Ways to choose keys, and the range of biases and the steps that were published with each.
CHOICES = {"attention": (-3.0, 3.0, 2), "greedy": (math.log(1e-12), 7.0, 0)}


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
        choice: of keys: ``attention`` (the best scores), or ``greedy``: one after the other, each
            that covers most of the mass which the others leave. Greedy choice is better and far
            slower, and holds the weights of all sample queries over a head's tokens.
        score: of a key, over all queries: ``rms``, ``max`` or ``mean`` of its weights.
        low, high: range of the bias, in the logits' unit; None: as published, -3 and 3, for greedy
            choice -27.6 and 7.
        steps: of projected gradient descent behind the clamped fit of the biases; None: as
            published, 2, for greedy choice 0.
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
    choice: str = method_option("attention", words=tuple(CHOICES))
    score: str = method_option("rms", words=SCORES)
    low: float | None = None
    high: float | None = None
    steps: int | None = method_option(None, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high, _ = self.fitting
        if low > high:
            raise UserError(f"{self.name}: low {low:g} is above high {high:g}")

    @property
    def fitting(self) -> tuple[float, float, int]:
        """Range of the biases, and steps behind their clamped fit."""
        given = (self.low, self.high, self.steps)
        low, high, steps = (
            usual if value is None else value
            for value, usual in zip(given, CHOICES[self.choice], strict=True)
        )
        return low, high, int(steps)

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
            low, high, steps = self.fitting
            if self.choice == "greedy":
                middle = matched.greedily(keys[own], count, low, high).sort().values
            else:
                middle = top_mask(matched.scores, torch.tensor(count)).nonzero().flatten()
            bias[middle + len(first)], fitted = matched.fit(keys[own], middle, low, high, steps)
            middle = middle + len(first)
            values = values.clone()
            values[middle] = fitted.to(values.dtype)
        kept = torch.cat([first, middle, last])
        return Merged(keys[kept], values[kept], bias[kept]), kept
