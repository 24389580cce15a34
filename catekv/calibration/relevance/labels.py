"""What relevance predictors learn to say, and how well they say it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from catekv import kernels
from catekv.methods.atskv.relevance import attention_label
from catekv.methods.base import Observed

#: ``later``: attention from the tokens after the context; ``received``: from the context itself.
LABELS = ("later", "received")
#: ``rank``: rank within the prompt over its length; ``max``: divided by the largest (the paper).
SCALES = ("rank", "max")
#: ``mass``: tokens count by the attention they receive; ``none``: all alike (the paper)
WEIGHTS = ("mass", "none")
#: share of a prompt's tokens that count as truly attended
ATTENDED = 0.01


def split_attention(observed: Observed, later: int) -> tuple[Tensor, Tensor]:
    """Attention that the context's tokens receive from the context, and from what follows.

    Args:
        observed: a layer of one whole text, with the queries of its last ``later`` tokens.
        later: tokens that do not belong to the context, at least 1.

    Returns:
        Sums over the queries float32 [1, query_heads, context] of both.
    """
    assert observed.column_sums is not None
    after = kernels.column_sums(
        observed.queries[:, :, -later:], observed.keys, observed.scaling, form=observed.form
    )
    context = observed.tokens - later
    before = (observed.column_sums - after).clamp(min=0)
    return before[..., :context], after[..., :context]


def label_of(before: Tensor, after: Tensor, label: str, scale: str) -> Tensor:
    """The label of every context token: float32 [context], in [0, 1].

    Args:
        before, after: as :func:`split_attention` gives them. Every later query sees the whole
            context, so sums over later queries are causally normalised by themselves.
    """
    sums = after if label == "later" else before
    if scale == "max":
        return attention_label(sums)[0]
    return average_ranks(sums[0].float().sum(dim=0)) / max(1, sums.shape[-1] - 1)


def weights_of(before: Tensor, after: Tensor, label: str, weight: str) -> Tensor:
    """How much every context token counts in the loss: float32 [context], 1 on average.

    Questions look at few tokens, and at one of many that look alike. Where all tokens count alike
    those are lost among the others; with ``mass`` half of the weight follows the attention.
    """
    received = (after if label == "later" else before)[0].float().sum(dim=0)
    if weight == "none":
        return torch.ones_like(received)
    share = received / received.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return (1 + share) / 2


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 0 of [tokens], equal values share their mean rank: float32 [tokens]."""
    _, member, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    return (last - (count + 1) / 2).float()[member]


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation of two [tokens]; nan where one of them is constant."""
    ranks = [average_ranks(x) for x in (left, right)]
    centred = [x - x.mean() for x in ranks]
    norm = float(centred[0].norm() * centred[1].norm())
    return float(centred[0] @ centred[1]) / norm if norm else math.nan


def best(scores: Tensor, share: float) -> Tensor:
    """The share of tokens with the highest scores (at least one), ties to the lower index: bool."""
    count = max(1, round(share * len(scores)))
    order = scores.sort(descending=True, stable=True).indices[:count]
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, order, True)


def recall(relevance: Tensor, received: Tensor, kept: float) -> float:
    """Share of the truly attended tokens (:data:`ATTENDED`) among the ``kept`` most relevant."""
    wanted = best(received, ATTENDED)
    return float((best(relevance, kept) & wanted).sum() / wanted.sum())


def mass(relevance: Tensor, received: Tensor, kept: float) -> float:
    """Share of the received attention that the ``kept`` most relevant tokens received."""
    total = float(received.sum())
    return float(received[best(relevance, kept)].sum()) / total if total else math.nan
