"""The gate of an MLP, ``silu(gate) * up``: the definition, which is also the torch path."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_multiply_torch(gate_up: Tensor) -> Tensor:
    """Argument and result as in :func:`catekv.kernels.silu_multiply`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
