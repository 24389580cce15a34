"""Shapes of well-known long-context models, for latency and memory without their weights."""

from __future__ import annotations

from typing import Any

from catekv.errors import UserError

#: How Qwen2.5 is run beyond its 32K training length.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
#: name -> (transformers model type, configuration values). Only what differs from the defaults of
#: the model type and matters for shapes, positions and cache sizes.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3-8b-1m": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 1048576,
            "rope_parameters": {"rope_type": "default", "rope_theta": 3580165449.0},
        },
    ),
    "llama3.1-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "yi-9b-200k": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 64000,
            "max_position_embeddings": 262144,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0},
        },
    ),
    "yi-34b-200k": (
        "llama",
        {
            "hidden_size": 7168,
            "intermediate_size": 20480,
            "num_hidden_layers": 60,
            "num_attention_heads": 56,
            "num_key_value_heads": 8,
            "vocab_size": 64000,
            "max_position_embeddings": 200000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0},
        },
    ),
    "phi3-mini-128k": (
        "phi3",
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "sliding_window": 262144,
            # the published factors are per frequency; shapes and cost do not depend on their values
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 48,
                "long_factor": [1.0] * 48,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "phi4": (
        "phi3",
        {
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "vocab_size": 100352,
            "max_position_embeddings": 16384,
            "original_max_position_embeddings": 16384,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
        },
    ),
    "qwen2.5-7b": (
        "qwen2",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 131072,
            "rope_parameters": YARN,
        },
    ),
    "qwen2.5-32b": (
        "qwen2",
        {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "max_position_embeddings": 131072,
            "rope_parameters": YARN,
        },
    ),
    "glm4-9b-1m": (
        "glm",
        {
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151552,
            "max_position_embeddings": 1048576,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 100000000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
}


def available() -> list[str]:
    """Names of all presets."""
    return sorted(PRESETS)


def preset_config(name: str, layers: int | None = None, **changes: Any) -> Any:
    """A transformers configuration of a preset.

    Args:
        name: one of :func:`available`, in any case.
        layers: number of decoder layers if not the model's own (for small runs).
        changes: further configuration values to override.

    Raises:
        UserError: unknown name (the known ones are listed).
    """
    from transformers import AutoConfig

    key = name.lower()
    if key not in PRESETS:
        raise UserError(f"unknown model shape {name!r}; known: {', '.join(available())}")
    model_type, values = PRESETS[key]
    values = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, **values, **changes}
    if layers is not None:
        if layers < 1:
            raise UserError(f"layers {layers} must be at least 1")
        values["num_hidden_layers"] = layers
    return AutoConfig.for_model(model_type, **values)
