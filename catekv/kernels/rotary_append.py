"""Rotary embedding of queries and keys, and keys and values to the tail: the definition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.kernels.append import append_torch
from catekv.kernels.rms_norm import rms_norm_torch


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """RMSNorm over the numbers of every query and key head, before they are rotated (Qwen3).

    ``query`` and ``key`` are the weights [head_dim], ``epsilon`` is added to the variance.
    """

    query: Tensor
    key: Tensor
    epsilon: float


def rotated(states: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding as transformers computes it, to the bit.

    Args:
        states: [batch, heads, tokens, head_dim].
        cos, sin: [batch or 1, tokens, rotary_dim]; numbers of a head beyond rotary_dim stay.
        interleaved: pairs are neighbours (GLM-4); else numbers half of rotary_dim apart (Llama).
    """
    cos, sin = cos[:, None], sin[:, None]
    width = cos.shape[-1]
    turned = states[..., :width]
    if interleaved:
        cos, sin = (x[..., : width // 2].repeat_interleave(2, dim=-1) for x in (cos, sin))
        other = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
    else:
        other = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
    turned = turned * cos + other * sin
    if width == states.shape[-1]:
        return turned
    return torch.cat([turned, states[..., width:]], dim=-1)


def rotary_append_torch(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    tail_keys: Tensor,
    tail_values: Tensor,
    tail_length: Tensor,
    query_heads: int,
    interleaved: bool,
    norms: HeadNorms | None,
) -> Tensor:
    """Arguments and result as in :func:`catekv.kernels.rotary_append`."""
    kv_heads, head_dim = tail_keys.shape[1], tail_keys.shape[3]
    heads = projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)
    queries, keys, values = heads.split([query_heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        queries = rms_norm_torch(queries, norms.query, norms.epsilon, None)[1]
        keys = rms_norm_torch(keys, norms.key, norms.epsilon, None)[1]
    keys = rotated(keys, cos, sin, interleaved)
    append_torch(tail_keys, tail_values, keys, values, tail_length)
    return rotated(queries, cos, sin, interleaved).contiguous()


def why_no_rotary_kernel(
    projected: Tensor, cos: Tensor, sin: Tensor, tail_keys: Tensor, tail_values: Tensor
) -> str | None:
    """Why the triton kernel cannot take these arguments; None if it can."""
    given = (projected, cos, sin, tail_keys, tail_values)
    if len({tensor.dtype for tensor in given}) > 1:
        return "projections, rotary tables and tails have different types"
    if projected.shape[1] != 1:
        return "it rotates one new token of each sequence"
    if not projected.is_contiguous() or any(tensor.stride(-1) != 1 for tensor in given):
        return "a token's numbers do not lie behind each other in memory"
    return None
