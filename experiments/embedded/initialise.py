"""Structured starting weights: the means to retrieve, not the result.

Induction emerges too late from random weights on two CPU cores. What is set here, all of it free
to change in training:

* one embedding dimension is constant, with the opposite sign for BOS (an attention sink);
* in layer 0 some heads look one to six tokens back and copy those tokens' codes into dimensions
  of the residual stream kept for them;
* in layer 1 two key-value heads match the current token with keys whose *previous* token is the
  same, in layer 2 two match the last two tokens; they copy the found token to the output code.

Everything else is random. No head is made consistent or adaptive in a compression method's sense,
none is frozen, and nothing was chosen by looking at compression.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from catekv.tasks.wording import vocabulary

_CONSTANT = 4.0
_LOOK_BACK_SHARPNESS = 20.0
_MATCH_SHARPNESS = 5.0
_SINK = 6.0


def initialise(weights: dict[str, Tensor], config: Any, seed: int) -> None:
    """Fill ``weights`` (a stock Llama's parameters, float32) in place."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def orthogonal(rows: int, columns: int) -> Tensor:
        """Random orthonormal rows (``rows <= columns``)."""
        return torch.linalg.qr(normal(columns, rows))[0].T.contiguous()

    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.copy_(normal(*weight.shape) * 0.2 / math.sqrt(weight.shape[1]))
        else:
            weight.copy_(normal(*weight.shape) * 0.5 / math.sqrt(weight.shape[1]))

    hidden, dim = config.hidden_size, config.head_dim
    half = dim // 2
    # Layout of the residual stream: token code, codes of earlier tokens, output code, constant.
    width = hidden * 5 // 16
    earlier = [dim, dim, dim // 2, dim // 2, dim // 2, dim // 2]
    starts = [width]
    for size in earlier:
        starts.append(starts[-1] + size)
    constant = hidden - 1
    output = torch.arange(starts[-1], hidden - 1)[: 2 * dim]
    assert len(output) >= dim, "the hidden size is too small for the structured initialisation"

    embedding = weights["model.embed_tokens.weight"]
    embedding.copy_(normal(*embedding.shape) * 0.02)
    code = normal(embedding.shape[0], width)
    code *= math.sqrt(width) / code.norm(dim=1, keepdim=True)
    embedding[:, :width] = code
    embedding[:, constant] = _CONSTANT
    embedding[vocabulary.BEGIN, constant] = -_CONSTANT
    to_output = orthogonal(len(output), width)
    head = weights["lm_head.weight"]
    head.copy_(normal(*head.shape) * 0.02)
    head[:, output] = 0.25 * code @ to_output.T

    group = config.num_attention_heads // config.num_key_value_heads
    token_to_earlier = orthogonal(dim, width)

    def rows(head_index: int) -> slice:
        return slice(head_index * dim, (head_index + 1) * dim)

    # Layer 0: look back. The fastest rotary pairs turn by a known angle per token.
    attention = "model.layers.0.self_attn."
    constant_scale = _CONSTANT / math.sqrt((width + _CONSTANT**2) / hidden)
    frequency = float(config.rope_parameters["rope_theta"]) ** (-torch.arange(half) / half)
    strength = math.sqrt(_LOOK_BACK_SHARPNESS * math.sqrt(dim)) / constant_scale
    for query_head, size in enumerate(earlier):
        kv_head, back = query_head // group, query_head + 1
        query = weights[attention + "q_proj.weight"][rows(query_head)]
        key = weights[attention + "k_proj.weight"][rows(kv_head)]
        value = weights[attention + "v_proj.weight"][rows(kv_head)]
        query.zero_()
        key.zero_()
        value.zero_()
        for pair in range(3):
            angle = -float(frequency[pair]) * back
            query[pair, constant] = strength * math.cos(angle)
            query[pair + half, constant] = strength * math.sin(angle)
            key[pair, constant] = strength
        value[:, :width] = token_to_earlier
        out = weights[attention + "o_proj.weight"][:, rows(query_head)]
        out.zero_()
        gain = math.sqrt((width + _CONSTANT**2) / hidden)
        start = starts[query_head]
        out[start : start + size] = gain * torch.eye(dim)[:size]

    # Layers 1 and 2: match and copy, in rotary pairs that hardly turn.
    slow = [pair for pair in range(half) if frequency[pair] * config.max_position_embeddings < 0.5]
    places = torch.tensor([*slow, *(pair + half for pair in slow)])
    sink, places = int(places[-1]), places[:-1]
    previous = slice(starts[0], starts[0] + dim)
    second = slice(starts[1], starts[1] + dim)
    for layer in (1, 2):
        attention = f"model.layers.{layer}.self_attn."
        scale = math.sqrt(_MATCH_SHARPNESS)
        for kv_head in (0, 1):
            query = weights[attention + "q_proj.weight"][rows(kv_head * group)]
            key = weights[attention + "k_proj.weight"][rows(kv_head)]
            value = weights[attention + "v_proj.weight"][rows(kv_head)]
            query.zero_()
            key.zero_()
            value.zero_()
            code_one, code_two = orthogonal(len(places), dim), orthogonal(len(places), dim)
            query[places, :width] = scale * code_one @ token_to_earlier
            key[places, previous] = scale * code_one
            if layer == 2:
                query[places, previous] = scale * code_two
                key[places, second] = scale * code_two
            query[sink, constant] = _SINK / constant_scale
            key[sink, constant] = -_SINK / constant_scale
            part = to_output[kv_head * dim : (kv_head + 1) * dim]
            value[: len(part), :width] = part
            out = weights[attention + "o_proj.weight"][:, rows(kv_head * group)]
            out.zero_()
            target = output[kv_head * dim : kv_head * dim + len(part)]
            out[target, torch.arange(len(part))] = 1.0
