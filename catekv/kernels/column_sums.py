"""Attention that every key receives from all prompt queries, without the attention matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm

#: Upper bound on the bytes of one block's logits, the largest temporary. A CPU works on blocks that
#: stay in its cache.
BLOCK_BYTES = 128 * 2**20
CPU_BLOCK_BYTES = 2 * 2**20
#: Logits up to this size need no maximum subtracted: sums of their exponentials stay within fp32.
SAFE_LOGIT = 60.0


def column_sums_torch(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    valid: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Causal softmax attention of the last queries, summed over them.

    Args:
        queries: [batch, query_heads, query_tokens, head_dim], the last ``query_tokens`` positions.
            Sums over parts of a prompt add up, part by part.
        keys: [batch, kv_heads, tokens, head_dim], everything up to the last query.
        scaling: factor of the logits.
        valid: bool [batch, tokens]; padding neither asks nor is seen. None: no padding.
        form: soft cap and sinks of the logits.

    Returns:
        float32 [batch, query_heads, tokens].
    """
    batch, query_heads, query_tokens, head_dim = queries.shape
    kv_heads, tokens = keys.shape[1:3]
    group = query_heads // kv_heads
    device = keys.device
    sums = torch.zeros(batch, query_heads, tokens, dtype=torch.float32, device=device)
    if not query_tokens:
        return sums
    limit = CPU_BLOCK_BYTES if device.type == "cpu" else BLOCK_BYTES
    step = min(query_tokens, max(1, limit // (4 * group * tokens)))
    buffer = torch.empty(group * step * tokens, dtype=torch.float32, device=device)
    later = torch.ones(step, step, dtype=torch.bool, device=device).triu(1)
    sinks = form.sinks_of(0, query_heads, torch.float32)
    safe = _largest_logit(queries, keys, scaling, form) <= SAFE_LOGIT
    first = tokens - query_tokens
    for b in range(batch):
        for head in range(kv_heads):
            row_keys = keys[b, head].float() * scaling
            members = slice(head * group, (head + 1) * group)
            for start in range(0, query_tokens, step):
                size = min(step, query_tokens - start)
                seen = first + start + size
                block = queries[b, members, start : start + size].float().reshape(-1, head_dim)
                weights = buffer[: group * size * seen].view(group * size, seen)
                torch.mm(block, row_keys[:seen].T, out=weights)
                weights = form.cap_(weights).view(group, size, seen)
                sink = None if sinks is None else sinks[members, None, None]
                own = weights[:, :, seen - size :]
                if not safe:
                    own.masked_fill_(later[:size, :size], -torch.inf)
                    if valid is not None:
                        weights.masked_fill_(~valid[b, :seen], -torch.inf)
                    # a query on padding may see nothing at all
                    top = weights.amax(dim=-1, keepdim=True).clamp_(min=-1e30)
                    if sink is not None:
                        top = torch.maximum(top, sink)
                        sink = (sink - top).clamp_(min=-SAFE_LOGIT)
                    # what is as good as nothing stays a normal number: others are slow on a CPU
                    weights.sub_(top).clamp_(min=-SAFE_LOGIT)
                weights.exp_()
                own.masked_fill_(later[:size, :size], 0.0)
                if valid is not None:
                    weights.masked_fill_(~valid[b, :seen], 0.0)
                total = weights.sum(dim=-1)
                if sink is not None:
                    total += sink[..., 0].exp()
                share = total.reciprocal_()
                if valid is not None:
                    share.masked_fill_(~valid[b, seen - size : seen], 0.0)
                # normalising and summing over the queries is one product
                sums[b, members, :seen] += torch.bmm(share[:, None], weights)[:, 0]
    return sums


def _largest_logit(queries: Tensor, keys: Tensor, scaling: float, form: LogitForm) -> float:
    """An upper bound on the size of all logits, sinks included."""
    lengths = [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in (queries, keys)]
    largest = float(lengths[0].max() * lengths[1].max() * abs(scaling))
    if form.softcap is not None:
        largest = min(largest, form.softcap)
    return largest if form.sinks is None else max(largest, float(form.sinks.abs().max()))
