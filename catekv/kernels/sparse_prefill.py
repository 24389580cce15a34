"""Sparse attention while a prompt is read, with the kernels of the package ``minference``.

MInference (Jiang et al., NeurIPS 2024) estimates from the last queries of a prompt which columns
(keys that all look at) and which diagonals (distances) carry the attention of a head, and computes
those only. The method's share of the work, the estimate, is here; the kernel is the package's.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.errors import UserError

PACKAGE = "minference"
#: Columns and diagonals per head: what the package's own search found for most heads.
COLUMNS, DIAGONALS = 1000, 6096
#: Last queries that the estimate looks at, and the first columns and nearest diagonals that are
#: computed whatever it says.
LAST_QUERIES, FIRST_COLUMNS, NEAR_DIAGONALS = 64, 30, 100


def require_minference() -> None:
    """Raise ``UserError`` unless the package is installed (nothing is imported)."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "prefill='minference' needs the package minference, which is not installed; "
            "pip install 'catekv[minference]'"
        )


def estimate(
    queries: Tensor, keys: Tensor, scaling: float, columns: int, diagonals: int
) -> tuple[Tensor, Tensor]:
    """The columns and diagonals with the most attention of the last queries.

    Args:
        queries: [heads, tokens, head_dim]; keys: [tokens, head_dim] of the KV head they share.
        columns, diagonals: how many; all of them where the prompt has fewer.

    Returns:
        int64 [heads, columns]: positions of keys; int64 [heads, diagonals]: distances between
        query and key, 0 for a token and itself.
    """
    tokens = keys.shape[0]
    last = min(LAST_QUERIES, tokens)
    logits = queries[:, -last:].float() @ keys.float().T * scaling
    position = torch.arange(tokens, device=keys.device)
    hidden = position > position[-last:, None]
    weights = logits.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
    column = weights.sum(dim=1)
    column[:, :FIRST_COLUMNS] = torch.inf
    # every row one place further to the right than the next: diagonals lie in columns
    skewed = F.pad(weights.flip(1), (0, last)).flatten(1)[:, :-last]
    diagonal = skewed.view(len(queries), last, -1).sum(dim=1)[:, :tokens].flip(1)
    diagonal[:, :NEAR_DIAGONALS] = torch.inf
    return (
        column.topk(min(columns, tokens), dim=-1).indices,
        diagonal.topk(min(diagonals, tokens), dim=-1).indices,
    )


def minference_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, valid: Tensor | None
) -> Tensor:
    """Sparse causal attention of a whole prompt over itself.

    Args:
        query: [batch, query_heads, tokens, head_dim]; key, value: [batch, kv_heads, tokens, dim].
        scaling: factor of the logits.
        valid: bool [batch, tokens], False on padding on the left; None: no padding.

    Returns:
        [batch, tokens, query_heads, dim]; zeros on padding.

    Raises:
        UserError: a chunk of a prompt instead of a whole one.
    """
    if query.shape[2] != key.shape[2]:
        raise UserError(
            f"prefill='minference' needs a prompt in one piece, and got {query.shape[2]} of "
            f"{key.shape[2]} tokens; prefill with chunk_size=None"
        )
    kernel: Any = importlib.import_module(PACKAGE).vertical_slash_sparse_attention
    batch, heads, tokens, dim = query.shape
    group = heads // key.shape[1]
    output = query.new_zeros(batch, tokens, heads, value.shape[-1])
    # the kernel divides the logits by the root of the head dimension
    scaled = query * (scaling * dim**0.5)
    for b in range(batch):
        start = 0 if valid is None else tokens - int(valid[b].sum())
        for head in range(key.shape[1]):
            own = slice(head * group, (head + 1) * group)
            keys, values = key[b, head, start:], value[b, head, start:]
            columns, diagonals = estimate(query[b, own, start:], keys, scaling, COLUMNS, DIAGONALS)
            result = kernel(
                scaled[b : b + 1, own, start:].contiguous(),
                keys.expand(1, group, -1, -1).contiguous(),
                values.expand(1, group, -1, -1).contiguous(),
                columns[None],
                diagonals[None],
            )
            output[b, start:, own] = result[0].transpose(0, 1)
    return output
