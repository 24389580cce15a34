"""Scores of prompt tokens from the observation window: the definition that kernels must match.

Everything is computed in fp32 whatever the model's data type, and one block of rows (sequence, KV
head) at a time so that long prompts fit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

#: Upper bound on the bytes of one block's logits; a single row may exceed it.
BLOCK_BYTES = 256 * 2**20

CHUNK_RULES = ("sum_of_chunk_max", "max_of_chunk_sum")
POOLINGS = ("max", "average")


def window_attention(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int = 0,
    stop: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[slice, Tensor]]:
    """Attention of the last prompt queries over the keys ``[start, stop)``, block by block.

    The softmax runs over that range only, with a causal mask where the range reaches into the
    window, and the result is the mean over the query heads of a group.

    Args:
        queries: [batch, query_heads, window, head_dim], the last queries of the prompt.
        keys: [batch, kv_heads, tokens, head_dim], the whole prompt.
        scaling: factor of the logits.
        start, stop: range of keys; default all.
        block_bytes: bound on the bytes of one block's logits.

    Yields:
        (rows, attention): a slice over the rows ``batch * kv_heads`` and their probabilities, fp32
        [rows, window, stop - start]. A query before the first key of the range gets zeros.
    """
    batch, heads, tokens, dim = keys.shape
    group, window = queries.shape[1] // heads, queries.shape[2]
    stop = tokens if stop is None else stop
    grouped = queries.unflatten(1, (heads, group))
    hidden = None
    if stop > tokens - window + 1:
        positions = torch.arange(tokens - window, tokens, device=keys.device)
        hidden = torch.arange(start, stop, device=keys.device) > positions[:, None]
    step = max(1, block_bytes // (4 * max(1, (stop - start) * max(window, dim))))
    for row in range(batch):
        for first in range(0, heads, step):
            last = min(first + step, heads)
            block = keys[row, first:last, start:stop].float().transpose(-1, -2)
            mean: Tensor | None = None
            for member in range(group):
                logits = (grouped[row, first:last, member].float() * scaling) @ block
                if hidden is not None:
                    logits.masked_fill_(hidden, -torch.inf)
                probability = torch.softmax(logits, dim=-1)
                if hidden is not None:
                    # a query before the whole range
                    probability.nan_to_num_(nan=0.0)
                mean = probability if mean is None else mean.add_(probability)
            assert mean is not None
            rows = slice(row * heads + first, row * heads + last)
            yield rows, mean.div_(group) if group > 1 else mean


def chunk_maximum(attention: Tensor, chunk_size: int) -> Tensor:
    """Largest value of every chunk: [..., tokens] -> [..., ceil(tokens / chunk_size)]."""
    rest = -attention.shape[-1] % chunk_size
    if rest:
        attention = F.pad(attention, (0, rest), value=-torch.inf)
    return attention.unflatten(-1, (-1, chunk_size)).amax(dim=-1)


def chunk_scores(attention: Tensor, chunk_size: int, rule: str = "sum_of_chunk_max") -> Tensor:
    """Retention score of every chunk.

    Args:
        attention: [..., window, tokens].
        rule: ``sum_of_chunk_max`` (CateKV as released: sum over the queries of a chunk's largest
            probability) or ``max_of_chunk_sum`` (as printed: a chunk's largest summed probability).

    Returns:
        [..., chunks].
    """
    if rule == "max_of_chunk_sum":
        return chunk_maximum(attention.sum(dim=-2), chunk_size)
    return chunk_maximum(attention, chunk_size).sum(dim=-2)


def window_token_scores(
    queries: Tensor, keys: Tensor, scaling: float, kernel: int = 7, pooling: str = "max"
) -> Tensor:
    """SnapKV score of every token before the window: [batch, kv_heads, tokens - window].

    Causal softmax over all keys, mean over the window queries and the query group, then pooling
    along the keys (stride 1; the average counts the zero padding at the edges).
    """
    batch, heads, tokens, _ = keys.shape
    before = tokens - queries.shape[2]
    scores = torch.empty(batch * heads, before, device=keys.device)
    for rows, attention in window_attention(queries, keys, scaling):
        scores[rows] = attention[..., :before].mean(dim=-2)
    if before and kernel > 1:
        pool = F.max_pool1d if pooling == "max" else F.avg_pool1d
        scores = pool(scores[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]
    return scores.view(batch, heads, before)


def top_mask(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts`` highest scores of every row; ties go to the lower index.

    ``scores`` [..., entries], ``counts`` int, broadcast to [...]; returns bool [..., entries].
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    taken = (ranks < counts.to(scores.device)[..., None]).expand_as(order)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, taken)
