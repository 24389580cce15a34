"""Base of the methods that score every prompt token by itself and keep the best of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.methods.allocators import budgets_from
from catekv.methods.base import Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option


@dataclass(frozen=True)
class EntryScored(Budgeted):
    """Keep the best ``budget`` tokens of every head; ties go to the lower position.

    The last :meth:`edges` tokens are kept besides or, with ``edges_in_budget``, among them.
    """

    budget: int = method_option(1024, least=1)
    budgets: Any = method_option(None, convert=budgets_from)

    def entry_scores(self, observed: Observed) -> Tensor:
        """Score of every token, float32 [batch, kv_heads, tokens]; the largest are kept."""
        raise NotImplementedError

    def token_scores(self, observed: Observed) -> Tensor:
        return self.entry_scores(observed)[:, :, : max(0, observed.tokens - self.edges())]

    def layer_counts(self, observed: Observed) -> Tensor:
        """Tokens that each head keeps outside the edges: int64 [kv_heads]."""
        return self.counts(observed.tokens, observed.shape)[observed.layer]

    def select_observed(self, observed: Observed) -> Selection:
        keys, counts = observed.keys, self.layer_counts(observed)
        keep = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device)
        before = max(0, observed.tokens - self.edges())
        if int(counts.min()) < before:
            scores = self.token_scores(observed)
            keep[:, :, :before] = top_mask(scores, self.split(scores, counts))
        return Selection(keep)
