"""CriticalKV (Feng et al., 2025): scores weighed by what a value adds to the layer's output."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from catekv.methods.base import Needs, Observed
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.output_norms import output_norms
from catekv.methods.formulas.repeat import value_norms
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.wrapped import Wrapped

#: What bounds are raised by, as much as outputs in bfloat16 are rounded.
_ROUNDING = 2**-8


def first_stage(scores: Tensor, counts: Tensor, first: float) -> Tensor:
    """The tokens that are certain by the scores [..., entries] alone: the best ``first`` of the
    ``counts`` [...] that are kept, at least one."""
    certain = (counts * first + 1e-9).floor().long()
    return top_mask(scores, certain.clamp(min=1 if first else 0).minimum(counts))


def best_products(
    scores: Tensor, values: Tensor, projection: Tensor | None, certain: Tensor, counts: Tensor
) -> Tensor:
    """Scores times output norms where they may be among the best that are left of the ``counts``
    [batch, kv_heads] behind the ``certain`` tokens: like scores [batch, kv_heads, entries], minus
    infinity for tokens that cannot be.

    An L1 norm is at most the L2 norm, which is cheap, times the root of the hidden size. Only
    tokens whose bound reaches the worst of as many products as are wanted need their L1 norm.
    """
    if projection is None or bool((scores < 0).any()) or projection.shape[1] != values.shape[-1]:
        return scores * output_norms(values, projection)
    products = torch.full_like(scores, -torch.inf)
    widest = projection.shape[2] ** 0.5 * (1 + _ROUNDING)
    wanted = (counts.cpu() - certain.sum(dim=-1).cpu()).tolist()
    heads = projection.unflatten(0, (scores.shape[1], -1))
    for b, head in itertools.product(*map(range, scores.shape[:2])):
        count = wanted[b][head]
        if count < 1:
            continue
        row_scores, row_values, own = scores[b, head], values[b, head], heads[head]
        bounds = row_scores * value_norms(row_values, own).mean(dim=0) * widest
        bounds = bounds.masked_fill(certain[b, head], -torch.inf)
        order = bounds.sort(descending=True).indices
        best = _products(row_scores, row_values, own, order[:count])
        more = order[count : int((bounds >= best.min()).sum())]
        products[b, head, order[:count]] = best
        products[b, head, more] = _products(row_scores, row_values, own, more)
    return products


def _products(scores: Tensor, values: Tensor, projection: Tensor, tokens: Tensor) -> Tensor:
    """Scores [entries] times output norms of some tokens of a head."""
    return scores[tokens] * output_norms(values[tokens][None, None], projection)[0, 0]


@register
@dataclass(frozen=True)
class CriticalKV(Wrapped):
    """Choose in two stages: by the scores of the base, then by scores times output norms.

    The first share of the budget goes to the tokens that the base likes best; the rest to those
    with the largest product of score and L1 norm of the value behind the output projection (mean
    over the query group). Tokens that the base always keeps are kept besides, and no part of the
    first stage. With ``base=adakv`` the heads' counts are AdaKV's. A base with negative scores
    (keydiff, knorm) takes the products the other way round: larger norms then lower them.

    Args:
        first: share of a head's tokens that are chosen by the score alone.
        epsilon: added to every score before it is multiplied.
    """

    name: ClassVar[str] = "criticalkv"
    example = Example({"budget": 10, "base": {"name": "snapkv", "window": 4, "kernel": 3}})
    memory_formula = MemoryFormula(
        "budget + edges", terms=lambda method, tokens, shape: {"edges": method.edges()}
    )
    paper: ClassVar[str] = (
        "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective, 2025"
    )

    first: float = method_option(0.5, least=0, most=1)
    epsilon: float = method_option(1e-4, least=0)

    @property
    def needs(self) -> Needs:
        return replace(super().needs, output_projection=True)

    def chosen(self, scores: Tensor, counts: Tensor, observed: Observed) -> Tensor:
        counts = self.scorer.split(scores, counts).expand(scores.shape[:2])
        values = observed.values[:, :, : scores.shape[-1]]
        certain = first_stage(scores, counts, self.first)
        products = best_products(
            scores + self.epsilon, values, observed.output_projection, certain, counts
        )
        return top_mask(products.masked_fill(certain, torch.inf), counts)
