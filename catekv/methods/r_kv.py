"""R-KV (Cai et al., 2025): what is attended to and is no near copy, chosen while decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.methods.base import Needs, Observed
from catekv.methods.bounded import Bounded
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.options import method_option
from catekv.methods.registry import register

#: Cosines that are held at once: 32 MiB.
_FLOATS = 1 << 23


def importance(queries: Tensor, keys: Tensor, kernel: int) -> Tensor:
    """Attention of the newest queries of a KV head on its entries: float32 [entries].

    The largest logit of the group counts; softmax over these entries alone, mean over the queries,
    maximum over ``kernel`` neighbours.

    Args:
        queries: [group, queries, head_dim], scaled. keys: [entries, head_dim].
    """
    logits = (queries.float() @ keys.float().T).amax(dim=0)
    attention = logits.softmax(dim=-1).mean(dim=0)
    return F.max_pool1d(attention[None], kernel, stride=1, padding=kernel // 2)[0]


def redundancy(keys: Tensor, similar: float, first_column: bool) -> Tensor:
    """How alike each key [entries, head_dim] of a head is to the others: float32 [entries], sum 1.

    Softmax of the mean cosine that the keys have to it. Of the keys that are more than ``similar``
    to a key the newest does not count for that one, so that one copy is spared.

    Args:
        first_column: the first key does not count either for a key without any that similar (as
            the released code has it).
    """
    count = len(keys)
    states = keys.float()
    units = states / (torch.linalg.vector_norm(states, dim=-1, keepdim=True) + 1e-8)
    total = units.new_zeros(count)
    places = torch.arange(count, device=keys.device)
    for rows in places.split(max(1, _FLOATS // count)):
        cosines = units[rows] @ units.T
        cosines.scatter_(1, rows[:, None], 0.0)
        copies = cosines > similar
        last = torch.where(copies, places, -1).amax(dim=-1)
        spared = last.clamp(min=0) if first_column else last.where(last >= 0, rows)
        total += cosines.scatter(1, spared[:, None], 0.0).sum(dim=0)
    return (total / count).softmax(dim=-1)


@register
@dataclass(frozen=True)
class RKV(Bounded):
    """Keep what the newest queries look at and what is no near copy of other keys.

    While decoding, every ``every`` tokens each head keeps its newest ``window`` entries and the
    best others by ``weight * importance - (1 - weight) * redundancy``. Importance is the attention
    of the newest ``window`` queries, the largest of the group, with the maximum of neighbours;
    redundancy the softmax of the mean cosine between keys, where one copy of a key is spared. The
    prompt competes like all else, and is compressed at once if it is longer than the budget.

    Args:
        window: newest queries that score, and newest entries that are certain.
        kernel: width of the pooling, odd; 1 = none.
        similar: cosine above which keys are copies.
        weight: of importance, against redundancy (0.07 in the released code).
        first_column: as published, a key without a copy spares the first entry of its head.
    """

    name: ClassVar[str] = "r_kv"
    example = Example({"budget": 12, "every": 3, "window": 2, "kernel": 3})
    memory_formula = MemoryFormula("budget", "kept*(e + 4) + window*Q/H*d*s")
    paper: ClassVar[str] = (
        "R-KV: Redundancy-aware KV Cache Compression for Reasoning Models, NeurIPS 2025"
    )
    recommended: ClassVar[dict[str, Any]] = {"first_column": False}

    buffer: int | None = 0
    rule: str = "position"
    window: int = method_option(8, least=1)
    kernel: int = method_option(7, least=1, odd=True)
    similar: float = method_option(0.5, least=0, most=1)
    weight: float = method_option(0.1, least=0, most=1)
    first_column: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def edges(self) -> int:
        return max(super().edges(), self.window)

    def entry_scores(self, observed: Observed) -> Tensor:
        scaling = observed.plain_scaling(self.name)
        queries = observed.queries.unflatten(1, (observed.keys.shape[1], -1)) * scaling
        before = max(0, observed.tokens - self.window)
        scores = torch.full(observed.keys.shape[:3], math.inf, device=observed.keys.device)
        for b in range(len(scores)) if before else ():
            for head, keys in enumerate(observed.keys[b]):
                seen = importance(queries[b, head], keys[:before], self.kernel)
                copied = redundancy(keys, self.similar, self.first_column)[:before]
                scores[b, head, :before] = self.weight * seen - (1 - self.weight) * copied
        return scores
