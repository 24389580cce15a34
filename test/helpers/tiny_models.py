"""Tiny random models of every supported family, and methods that only tests need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from catekv.methods.base import Method, Needs, Observed, Selection

LAYERS = 3
VOCABULARY = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 2.0, 4.0]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "yi": ("llama", {"num_key_value_heads": 1}),
    "llama3.1": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "phi3": ("phi3", {}),
    "phi3-long": (
        "phi3",
        {
            "sliding_window": 1024,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 32,
                **FACTORS,
            },
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 32}),
    "glm4": ("glm4", {"head_dim": 8, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "glm": ("glm", {"head_dim": 8, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 16,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip


def tiny_model(family: str, attention: str = "catekv", seed: int = 0, **changes: Any) -> Any:
    """A model of one family with fixed random weights, wide enough to have clear winners."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import catekv

    catekv.register_attention()
    kind, values = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**BASE, **values, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
    return model.eval()


@dataclass(frozen=True)
class KeepEverything(Method):
    """Keeps all tokens: an infinite budget."""

    name = "keep_everything"

    @property
    def needs(self) -> Needs:
        return Needs(window=8)

    def select_observed(self, observed: Observed) -> Selection:
        kept = torch.ones(observed.keys.shape[:3], dtype=torch.bool, device=observed.keys.device)
        return Selection(kept)


@dataclass(frozen=True)
class RandomKeep(Method):
    """Keeps a share of the tokens that differs between heads; the choice depends on the keys, so
    that two runs over the same prompt agree whatever the batch."""

    name = "random_keep"

    share: float = 0.5
    distinct: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(window=4)

    def select_observed(self, observed: Observed) -> Selection:
        batch, heads, tokens = observed.keys.shape[:3]
        index = torch.arange(tokens)
        keep = torch.zeros(batch, heads, tokens, dtype=torch.bool)
        for head in range(heads):
            generator = torch.Generator().manual_seed(1000 * observed.layer + head + tokens)
            score = torch.rand(tokens, generator=generator)
            share = self.share * (1 + head % 2) / 2 if self.distinct else self.share
            count = max(1, int(share * tokens) - (3 * head if self.distinct else 0))
            keep[:, head, index[score.argsort()[:count]]] = True
        return Selection(keep.to(observed.keys.device))
