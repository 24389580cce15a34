"""Tiny configurations of architectures beyond :mod:`tiny_models`, by what their layers keep."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import BASE, FAMILIES, tiny_model

WINDOWS: dict[str, Any] = {
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
LINEAR: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
DELTA: dict[str, Any] = {
    **LINEAR,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
#: every layer attends to the whole context
FULL: dict[str, dict[str, Any]] = {
    "cohere": {},
    "granite": {},
    "olmo2": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
}
#: some layers attend to a window or a chunk
LOCAL: dict[str, dict[str, Any]] = {
    "cohere2": WINDOWS,
    "exaone4": WINDOWS,
    "llama4_text": {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "attention_chunk_size": 32,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0, 1, 0],
    },
    "olmo3": WINDOWS,
}
#: some layers keep recurrent or convolutional states
RECURRENT: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**MAMBA, "num_hidden_layers": 3, "mamba_d_ssm": 128, "head_dim": 8},
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "num_experts": 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention"] * 2,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "head_dim": 8,
    },
    "olmo_hybrid": {**DELTA, "linear_num_key_heads": 4},
    "qwen3_5_text": DELTA,
    "qwen3_next": {
        **DELTA,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "decoder_sparse_step": 1,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "use_mem_rope": True,
    },
}
MORE = {**FULL, **LOCAL, **RECURRENT}
ALL = (*FAMILIES, *MORE)


def any_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny model of a family of :mod:`tiny_models` or one of :data:`MORE`, fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if name in FAMILIES:
        return tiny_model(name, seed=seed, **changes)
    config = AutoConfig.for_model(name, **{**BASE, **MORE[name], **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.12)
    return model.eval()
