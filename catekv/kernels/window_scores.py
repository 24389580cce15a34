"""Scores of prompt tokens from the last prompt queries: the definition, which is the torch path.

Everything is computed in fp32 whatever the model's data type, and one block of rows (sequence, KV
head) at a time so that long prompts fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm, softmax_with_sink

#: Upper bound on the bytes of one block's logits; a single row may exceed it.
BLOCK_BYTES = 64 * 2**20

CHUNK_RULES = ("sum_of_chunk_max", "max_of_chunk_sum")

#: What the triton kernels over the observation window are built for.
HEAD_DIMS = (64, 96, 128, 256)
MAX_GROUP = 16
MAX_CHUNK = 32


def window_attention(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int = 0,
    stop: int | None = None,
    block_bytes: int = BLOCK_BYTES,
    form: LogitForm = PLAIN,
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
        form: soft cap and sinks of the logits.

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
                logits = form.cap_((grouped[row, first:last, member].float() * scaling) @ block)
                if hidden is not None:
                    logits.masked_fill_(hidden, -torch.inf)
                sink = None
                if form.sinks is not None:
                    own = form.sinks.float().view(heads, group)[first:last, member]
                    sink = own[:, None, None]
                probability = softmax_with_sink(logits, sink)
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
    if chunk_size == 1:
        return attention.sum(dim=-2)
    if rule == "max_of_chunk_sum":
        return chunk_maximum(attention.sum(dim=-2), chunk_size)
    return chunk_maximum(attention, chunk_size).sum(dim=-2)


def window_scores_torch(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int,
    stop: int,
    chunk_size: int,
    rule: str,
    scored: int,
    heads: Tensor | None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Arguments as in :func:`catekv.kernels.window_scores`."""
    batch, kv_heads = keys.shape[:2]
    if heads is not None and len(heads) < kv_heads:
        queries = queries.unflatten(1, (kv_heads, -1))[:, heads].flatten(1, 2)
        if form.sinks is not None:
            form = replace(form, sinks=form.sinks.view(kv_heads, -1)[heads].flatten())
        keys = keys[:, heads]
    chunks = -(-scored // chunk_size)
    scores = torch.empty(batch * keys.shape[1], chunks, device=keys.device)
    for rows, attention in window_attention(queries, keys, scaling, start, stop, form=form):
        scores[rows] = chunk_scores(attention[..., :scored], chunk_size, rule)
    return scores.view(batch, keys.shape[1], chunks)


def why_no_window_kernel(
    queries: Tensor, keys: Tensor, chunk_size: int = 1, form: LogitForm = PLAIN
) -> str | None:
    """Why the triton kernels over the observation window cannot take these arguments."""
    if not form.plain:
        return f"the model has {form}"
    if keys.shape[-1] not in HEAD_DIMS:
        return f"head_dim {keys.shape[-1]} is none of {', '.join(map(str, HEAD_DIMS))}"
    if queries.shape[1] // keys.shape[1] > MAX_GROUP:
        return f"more than {MAX_GROUP} query heads share a KV head"
    if chunk_size > MAX_CHUNK:
        return f"chunks of {chunk_size} tokens are larger than {MAX_CHUNK}"
    if queries.dtype != keys.dtype or keys.dtype not in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
    ):
        return f"queries are {queries.dtype} and keys {keys.dtype}"
    if queries.stride(-1) != 1 or keys.stride(-1) != 1:
        return "a token's numbers do not lie behind each other in memory"
    return None
