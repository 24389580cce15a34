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

#: Cosines that are held at once: 16 MiB.
_FLOATS = 1 << 22


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
    lengths = torch.linalg.vector_norm(keys, dim=-1, keepdim=True, dtype=torch.float32)
    units = keys / (lengths + 1e-8)  # float32 by the lengths
    places = torch.arange(count, device=keys.device)
    last = newest_copies(units, similar)
    spared = last.clamp(min=0) if first_column else last.where(last >= 0, places)
    # the cosines to a key add up to its product with the sum of all keys, less that with itself
    total = (units @ units.sum(dim=0)).double()
    total -= torch.linalg.vector_norm(units, dim=-1).square()
    saved = (units * units[spared]).sum(dim=-1).masked_fill(spared == places, 0.0)
    total.index_add_(0, spared, -saved.double())
    return (total / count).softmax(dim=-1).float()


def newest_copies(units: Tensor, similar: float) -> Tensor:
    """The newest other key that is more than ``similar`` to each of the keys of length 1 [entries,
    head_dim]: int64 [entries], -1 where there is none.

    Blocks of keys are compared with older ones, the newest first, each pair once. Two keys whose
    newer copies are known need no cosine; on text few others are left after the first block.
    """
    places = torch.arange(len(units), device=units.device)
    last = torch.full_like(places, -1)
    # the host waits for a GPU at every block
    columns = 256 if units.device.type == "cpu" else 2048
    for start in reversed(range(0, len(units), columns)):
        own = places[start : start + columns]
        cosines = (units[own] @ units[own].T).fill_diagonal_(-1.0)
        last[own] = last[own].maximum(_newest(cosines.sub_(similar).sign_(), own))
        for older in places[:start].split(_FLOATS // columns) if start else ():
            known = last[older] >= 0
            left = own[last[own] < start]
            for some, others in ((older[~known], own), (older[known], left)):
                if len(some) and len(others):
                    above = (units[some] @ units[others].T).sub_(similar).sign_()
                    last[some] = last[some].maximum(_newest(above, others))
                    last[others] = last[others].maximum(_newest(above.T, some))
    return last


def _newest(above: Tensor, places: Tensor) -> Tensor:
    """The largest of the ascending ``places`` [columns] where a row of ``above`` [rows, columns] is
    1 and not 0 or -1: int64 [rows], negative where it is nowhere."""
    return (above * (places + 1).float()).amax(dim=-1).long() - 1


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
