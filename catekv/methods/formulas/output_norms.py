"""How much a token's value can add to the output of its layer."""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.formulas.blocks import block_floats

#: Columns of the outputs that are computed at once on a CPU.
_COLUMNS = 512


def output_norms(values: Tensor, projection: Tensor | None) -> Tensor:
    """L1 norm of every value behind the output projection, mean over the group of query heads.

    Costs as many operations as the projection itself does over the prompt. Values and projections
    that are both bfloat16 are multiplied as such where a CPU has AVX512: sums are float32, outputs
    are rounded, norms thereby change by about 1e-4.

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
    columns = _COLUMNS if values.device.type == "cpu" else projection.shape[2]
    block = max(1, block_floats(values.device) // (batch * columns))
    kind = torch.bfloat16 if _multiplied_narrow(values, projection) else torch.float32
    for query_head, weight in enumerate(projection):
        head, parts = query_head // group, weight.to(kind).split(columns, dim=1)
        for start in range(0, tokens, block):
            rows = slice(start, start + block)
            states = values[:, head, rows].to(kind)
            for part in parts:
                norms[:, head, rows] += (states @ part).abs_().sum(dim=-1, dtype=torch.float32)
    return norms / group


def _multiplied_narrow(values: Tensor, projection: Tensor) -> bool:
    # without AVX512 such products are many times slower than those of float32
    narrow = values.dtype == projection.dtype == torch.bfloat16 and values.device.type == "cpu"
    return narrow and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
