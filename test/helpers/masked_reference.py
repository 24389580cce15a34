"""Dense attention with one mask per head: what a compressed cache must be equal to.

Independent of the product's cache and kernels: an ordinary ``DynamicCache`` holds everything, and a
registered attention function hides the dropped context tokens from every query after the context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: layer -> bool [batch, kv_heads, context tokens]; empty while the context itself is read
KEEP: dict[int, Tensor] = {}
NAME = "masked_reference"


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    logits = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if attention_mask is not None:
        logits = logits + attention_mask[..., -key.shape[2] :]
    keep = KEEP.get(module.layer_idx)
    if keep is not None:
        hidden = ~keep.repeat_interleave(group, dim=1)[:, :, None]
        tokens = keep.shape[2]
        part = logits[..., :tokens].masked_fill(hidden, torch.finfo(logits.dtype).min)
        logits = torch.cat([part, logits[..., tokens:]], dim=-1)
    total = logits.exp().sum(dim=-1, keepdim=True)
    if s_aux is not None:
        total = total + s_aux.view(1, -1, 1, 1).exp()
    # a query on padding sees nothing
    output = (logits.exp() / total.clamp(min=1e-30)) @ value
    return output.transpose(1, 2).contiguous(), None


def decide(method: Any, cache: Any, mask: Tensor | None, num_layers: int) -> None:
    """Ask the method what it keeps of the full-attention layers of an ordinary cache."""
    for index, layer in enumerate(cache.layers):
        if getattr(layer, "is_sliding", False):
            continue
        keys, values = layer.keys, layer.values
        queries = keys.new_zeros(keys.shape[0], keys.shape[1], 8, keys.shape[3])
        valid = None if mask is None else mask.bool()
        selection = method.select(queries, keys, values, index, num_layers, valid=valid)
        KEEP[index] = selection.keep
