"""A small Llama as a GGUF file, with the weights of a checkpoint and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TOKENS = ("<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzĠĊ.:", "th", "the", "Ġa")
MERGES = ("t h", "th e", "Ġ a")
#: names of a layer's weights here and there
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(seed: int = 0) -> Any:
    """The model whose weights :func:`save_tiny_gguf` writes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def save_tiny_gguf(
    file: Path, model: Any, *, architecture: str = "llama", tokenizer: bool = True, layers: int = 2
) -> Path:
    """Write the model in float32 and return the file; ``layers``: what its header says."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(list(TOKENS))
        writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
        writer.add_token_merges(list(MERGES))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
            writer.add_tensor(_gguf_name(name), _permuted(name, weight.numpy(), heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_name(name: str) -> str:
    part = name.removeprefix("model.").removesuffix(".weight")
    if part.startswith("layers."):
        _, layer, own = part.split(".", 2)
        return f"blk.{layer}.{LAYER[own]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm"}[part] + ".weight"


def _permuted(name: str, weight: Any, heads: dict[str, int]) -> Any:
    """GGUF pairs neighbouring rotary dimensions, transformers those half a head apart."""
    for letter, count in heads.items():
        if name.endswith(f"{letter}_proj.weight"):
            shape = (count, 2, weight.shape[0] // count // 2, weight.shape[1])
            return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2)).reshape(weight.shape)
    return weight
