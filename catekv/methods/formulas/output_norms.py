"""How much a token's value can add to the output of its layer."""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.errors import UserError

#: Numbers of float32 outputs that are held at once: 64 MiB.
_FLOATS = 1 << 24


def output_norms(values: Tensor, projection: Tensor | None) -> Tensor:
    """L1 norm of every value behind the output projection, mean over the group of query heads.

    Costs as many operations as the projection itself does over the prompt.

    Args:
        values: [batch, kv_heads, tokens, head_dim].
        projection: [query_heads, head_dim, hidden_size].

    Returns:
        float32 [batch, kv_heads, tokens].

    Raises:
        UserError: a projection of heads of another size.
    """
    assert projection is not None
    batch, heads, tokens, dim = values.shape
    if projection.shape[1] != dim or projection.shape[0] % heads:
        raise UserError(
            f"an output projection {list(projection.shape)} (query heads, head_dim, hidden size) "
            f"does not take values of {heads} heads and {dim} numbers; pass that of the same model"
        )
    group = projection.shape[0] // heads
    norms = torch.zeros(batch, heads, tokens, device=values.device)
    block = max(1, _FLOATS // (batch * projection.shape[2]))
    for query_head in range(projection.shape[0]):
        head = query_head // group
        weight = projection[query_head].float()
        for start in range(0, tokens, block):
            part = slice(start, start + block)
            outputs = values[:, head, part].float() @ weight
            norms[:, head, part] += torch.linalg.vector_norm(outputs, ord=1, dim=-1)
    return norms / group
