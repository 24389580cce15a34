"""A lean forward pass over the weights of a stock ``LlamaForCausalLM``, made for CPU training.

The weights are the stock model's own parameters under their own names, so a checkpoint needs no
conversion; a test compares this forward with transformers'. Matrix products run in ``dtype``
(bfloat16 is faster on processors that have it), sums and norms in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]

#: below this length the plain product of matrices beats the fused attention kernel on a CPU
_FUSED_FROM = 384


def build_config(**overrides: Any) -> Any:
    """Shape of the embedded model. ``overrides`` make the tiny variants of the tests."""
    from transformers import LlamaConfig

    from catekv.tasks.wording import vocabulary

    settings: dict[str, Any] = {
        "vocab_size": len(vocabulary.words()),
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        # so slow that the lower twenty dimensions of a head hardly turn within 8192 tokens
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e12},
        "rms_norm_eps": 1e-5,
        "bos_token_id": vocabulary.BEGIN,
        "eos_token_id": vocabulary.END,
        "pad_token_id": vocabulary.PADDING,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    return LlamaConfig(**{**settings, **overrides})


def rotary(config: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[batch, 1, tokens, head_dim]`` of ``positions`` ``[batch, tokens]``."""
    half = config.head_dim // 2
    theta = float(config.rope_parameters["rope_theta"])
    frequency = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x * cosine + torch.cat((-second, first), dim=-1) * sine).to(dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, all ``[batch, heads, tokens, head_dim]``."""
    tokens = q.shape[2]
    if tokens >= _FUSED_FROM:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    bias = torch.zeros(tokens, tokens, dtype=q.dtype).masked_fill(future, float("-inf"))
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + bias
    return torch.matmul(torch.softmax(scores, dim=-1), v)


def hidden_states(
    weights: Weights,
    config: Any,
    tokens: Tensor,
    positions: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Final normalised hidden states, float32 ``[batch, tokens, hidden]``.

    ``tokens`` and ``positions`` are integers ``[batch, tokens]``; positions rise but may jump.
    """
    batch, length = tokens.shape
    heads, kv_heads, head_dim = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    cosine, sine = rotary(config, positions)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weights[name], config.rms_norm_eps).to(dtype)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[name].to(dtype))

    def split(x: Tensor, count: int) -> Tensor:
        return x.view(batch, length, count, head_dim).transpose(1, 2)

    x = F.embedding(tokens, weights["model.embed_tokens.weight"])
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm.weight")
        q = split(linear(h, prefix + "self_attn.q_proj.weight"), heads)
        k = split(linear(h, prefix + "self_attn.k_proj.weight"), kv_heads)
        v = split(linear(h, prefix + "self_attn.v_proj.weight"), kv_heads)
        q = _rotate(q, cosine, sine, dtype)
        k = _rotate(k, cosine, sine, dtype).repeat_interleave(heads // kv_heads, dim=1)
        v = v.repeat_interleave(heads // kv_heads, dim=1)
        out = _attend(q, k, v).transpose(1, 2).reshape(batch, length, heads * head_dim)
        x = x + linear(out, prefix + "self_attn.o_proj.weight").float()
        h = norm(x, prefix + "post_attention_layernorm.weight")
        gate = F.silu(linear(h, prefix + "mlp.gate_proj.weight"))
        up = linear(h, prefix + "mlp.up_proj.weight")
        x = x + linear(gate * up, prefix + "mlp.down_proj.weight").float()
    return norm(x, "model.norm.weight").float()


def logits(weights: Weights, hidden: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Token scores, float32 ``[..., vocabulary]``."""
    return F.linear(hidden.to(dtype), weights["lm_head.weight"].to(dtype)).float()
