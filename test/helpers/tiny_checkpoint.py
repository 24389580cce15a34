"""A complete checkpoint in a second: random Llama weights and the embedded model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_tiny_checkpoint(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write the checkpoint into ``folder`` and return it; ``changes`` go to the configuration."""
    from transformers import LlamaForCausalLM

    from catekv.tasks.wording.tokenizer import build_tokenizer
    from experiments.embedded.network import build_config

    config = build_config(
        **{
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 1024,
            **changes,
        }
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
