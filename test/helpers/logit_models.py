"""Tiny random models that cap their attention logits or have attention sinks."""

from __future__ import annotations

import functools
from typing import Any

import torch
from tiny_models import BASE, LAYERS

_LAYERS: dict[str, Any] = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
# a small cap, so that logits of random weights reach it
_CAPPED: dict[str, Any] = {
    **_LAYERS,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 2.0,
}
LOGIT_MODELS: dict[str, dict[str, Any]] = {
    "gemma2": _CAPPED,
    "vaultgemma": _CAPPED,
    "gpt_oss": {
        **_LAYERS,
        "head_dim": 16,
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@functools.lru_cache(maxsize=2)
def logit_model(name: str, *, sliding: bool = True) -> Any:
    """A model of :data:`LOGIT_MODELS` in fp32; its sinks are as large as its logits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {} if sliding else {"layer_types": ["full_attention"] * LAYERS}
    config = AutoConfig.for_model(name, **{**BASE, **LOGIT_MODELS[name], **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if label.endswith("sinks"):
                parameter.normal_(0.0, 2.0)
            elif parameter.ndim == 2:
                parameter.normal_(0.0, 0.12)
    return model.eval()
