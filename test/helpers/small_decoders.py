"""A small configuration and model of every causal decoder that transformers can build."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import BASE

#: Sizes by the names that configurations have for them; each takes those it knows.
SMALL: dict[str, Any] = {
    **BASE,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "sliding_window": 16,
    "rotary_dim": 4,
    "model_max_length": 512,
    "is_decoder": True,
    "ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_layers": 4,
    "decoder_attention_heads": 8,
    "encoder_attention_heads": 8,
    # experts
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention, and what chooses tokens for it
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_topk": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    # recurrent states
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_ssm": 128,
    "mamba_dt_rank": 4,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    # embeddings per layer, and tokens without padding
    "vocab_size_per_layer_input": BASE["vocab_size"],
    "hidden_size_per_layer_input": 8,
    "unpadded_vocab_size": BASE["vocab_size"],
}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_HYBRID = {"layer_types": ["hybrid_sliding", "hybrid"] * 2}
_LATENT = {"num_key_value_heads": 8}
_WHOLE = {"sliding_window": None}
# the multiplier divides logits: too flat for so small a width
_MUP = {**_HYBRID, "logits_mup_width_multiplier": 1.0}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
#: What a decoder wants beside or instead of :data:`SMALL`.
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
         "glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu"),
        _LATENT,
    ),
    **dict.fromkeys(("inkling2_text", "inkling_text"), _MUP),
    **dict.fromkeys(("doge", "gemma3_text", "kolibri1", "mellum", "ministral"), _WINDOWS),
    **dict.fromkeys(
        ("ministral3", "mistral", "mixtral", "phi3", "phi4_multimodal", "phimoe", "starcoder2"),
        _WHOLE,
    ),
    "bailing_hybrid": {**_LATENT, **_LINEAR},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        **_WINDOWS,
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROTARY),
    },
    "dbrx": {
        "d_model": 64, "n_heads": 8, "n_layers": 4,
        "attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": _LATENT,
    "gemma3n_text": {
        **_WINDOWS, "num_kv_shared_layers": 2, "laurel_rank": 8, "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2,
    },
    "gemma4_text": {**_WINDOWS, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "inkling2_loop_text": {
        **_HYBRID, "n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1,
        "loop_layer_index_end": 3, "loop_num_passes": 2, "loop_gate_rank": 8,
    },
    "kimi_linear": {**_LATENT, **_LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {
        **_LATENT, "zero_expert_num": 2, "moe_topk": 2, "expert_ffn_hidden_size": 32,
        "ffn_hidden_size": 64, "num_layers": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "minimax": _LINEAR,
    "moshi": {"sliding_window": 512},
    "prophetnet": {"num_decoder_layers": 4, "num_decoder_attention_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "axial_pos_embds_dim": (32, 32), "axial_pos_shape": (16, 32), "attention_head_size": 8,
    },
    "xlnet": {"d_head": 8, "d_model": 64, "n_head": 8, "n_layer": 4},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1, "n_mamba_heads": 8,
        "mamba_headdim": 16, "mamba_ngroups": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
#: What is in transformers' list but is not tried by itself, and why.
NOT_TRIED: dict[str, str] = {
    "blt": "its tokens are bytes in patches, which a second model cuts",
    "dots3_note": "images beside text; its text decoder is dots3_note_text",
    "gemma3n": "its vision part comes from the package timm; the text decoder is gemma3n_text",
    "gemma4_assistant": "it drafts tokens from the cache of another model",
    "gemma4_unified_assistant": "it drafts tokens from the cache of another model",
    "musicgen": "it writes sound codes",
    "musicgen_melody": "it writes sound codes",
}


def decoder_names() -> list[str]:
    """Every kind in transformers' list of causal language models, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(name: str, **changes: Any) -> Any:
    """A configuration of four small layers, with further changes."""
    from transformers import AutoConfig, PreTrainedConfig

    default: Any = AutoConfig.for_model(name)
    values = _small_values(default)
    for part in getattr(type(default), "sub_configs", {}):
        inner = getattr(default, part, None)
        if isinstance(inner, PreTrainedConfig):
            own = CHANGES.get(inner.model_type, {})
            values[part] = {**_small_values(inner), **own, "model_type": inner.model_type}
    return AutoConfig.for_model(name, **{**values, **CHANGES.get(name, {}), **changes})


def _small_values(config: Any) -> dict[str, Any]:
    known = {*config.to_dict(), *getattr(type(config), "attribute_map", {})}
    return {key: value for key, value in SMALL.items() if key in known}


def small_decoder(name: str, **changes: Any) -> Any:
    """A small model in fp32 with fixed random weights, wide enough to have clear winners."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        small_config(name, **changes), dtype=torch.float32
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
            elif "sink" in key:
                parameter.normal_(1.0, 1.0)
    return model.eval()
