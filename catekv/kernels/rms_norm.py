"""RMSNorm with the residual addition before it: the definition, which is also the torch path."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_torch(
    states: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Arguments and result as in :func:`catekv.kernels.rms_norm`.

    The order of operations, and with it both roundings (of the normed states, and of their product
    with the weight), is that of the RMSNorm of Llama and its relatives in transformers.
    """
    if residual is not None:
        states = residual + states
    wide = states.float()
    variance = wide.pow(2).mean(-1, keepdim=True)
    return states, weight * (wide * torch.rsqrt(variance + epsilon)).to(states.dtype)


def why_no_norm_kernel(states: Tensor, weight: Tensor, residual: Tensor | None) -> str | None:
    """Why the triton kernel cannot take these arguments; None if it can."""
    given = [states, weight] if residual is None else [states, weight, residual]
    if len({tensor.dtype for tensor in given}) > 1:
        return "states, residual and weight have different types"
    if not all(tensor.is_contiguous() for tensor in given):
        return "states, residual or weight do not lie in memory without gaps"
    return None
