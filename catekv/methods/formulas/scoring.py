"""Scores that methods choose tokens by, from the attention of the last prompt queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv import kernels
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.window_scores import (
    CHUNK_RULES,
    chunk_maximum,
    chunk_scores,
    window_attention,
)

__all__ = [
    "CHUNK_RULES",
    "ORDERS",
    "POOLINGS",
    "chunk_maximum",
    "chunk_scores",
    "top_mask",
    "window_attention",
    "window_token_scores",
]

POOLINGS = ("max", "average")
ORDERS = ("mean_then_pool", "pool_then_mean")
#: Bytes of one block of probabilities that are pooled before they are averaged.
_POOLED_BLOCK = 64 * 2**20


def window_token_scores(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    kernel: int = 7,
    pooling: str = "max",
    order: str = "mean_then_pool",
    form: LogitForm = PLAIN,
) -> Tensor:
    """SnapKV score of every token before the window: [batch, kv_heads, tokens - window].

    Causal softmax over all keys, mean over the window queries and the query group, then pooling
    along the keys (stride 1; the average counts the zero padding at the edges). With ``order``
    ``pool_then_mean`` every query of every head is pooled before the mean.
    """
    tokens, window = keys.shape[2], queries.shape[2]
    if order == "pool_then_mean" and kernel > 1 and pooling == "max":
        return _mean_of_pooled(queries, keys, scaling, kernel, form)
    scores = kernels.window_scores(
        queries, keys, scaling, 0, tokens, scored=tokens - window, form=form
    )
    scores /= window
    if scores.shape[-1] and kernel > 1:
        pool = F.max_pool1d if pooling == "max" else F.avg_pool1d
        scores = pool(scores, kernel, stride=1, padding=kernel // 2)
    return scores


def _mean_of_pooled(
    queries: Tensor, keys: Tensor, scaling: float, kernel: int, form: LogitForm
) -> Tensor:
    """Maximum over neighbours, then mean over window and group (the average pools linearly, so its
    order does not matter)."""
    batch, heads, tokens = keys.shape[:3]
    window, group = queries.shape[2], queries.shape[1] // heads
    grouped = queries.unflatten(1, (heads, group))
    scores = torch.zeros(batch * heads, tokens - window, device=keys.device)
    for member in range(group if tokens > window else 0):
        blocks = window_attention(
            grouped[:, :, member],
            keys,
            scaling,
            block_bytes=_POOLED_BLOCK,
            form=form.of_member(member, group),
        )
        for rows, attention in blocks:
            before = attention[..., : tokens - window]
            pooled = F.max_pool1d(before, kernel, stride=1, padding=kernel // 2)
            scores[rows] += pooled.sum(dim=-2)
    return (scores / (window * group)).view(batch, heads, -1)


def top_mask(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts`` highest scores of every row; ties go to the lower index.

    ``scores`` [..., entries], ``counts`` int, broadcast to [...]; returns bool [..., entries].
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    taken = (ranks < counts.to(scores.device)[..., None]).expand_as(order)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, taken)
