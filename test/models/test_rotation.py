"""Rotations read from transformers against the keys that real (tiny) models cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model
from transformers import DynamicCache

from catekv.errors import UserError
from catekv.models.rotation import Rotation, rotation_of


def projected_and_cached(model: Any, tokens: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [kv_heads, tokens, head_dim] of one layer before rotation and as cached."""
    attention = model.model.layers[layer].self_attn
    config = model.config
    heads = config.num_key_value_heads
    seen: list[torch.Tensor] = []
    packed = getattr(attention, "qkv_proj", None)
    source = packed if packed is not None else getattr(attention, "k_norm", attention.k_proj)
    hook = source.register_forward_hook(lambda module, inputs, output: seen.append(output))
    cache = DynamicCache(config=config)
    ids = (torch.arange(tokens) * 7 % VOCABULARY)[None]
    with torch.no_grad():
        model(ids, past_key_values=cache)
    hook.remove()
    projection = seen[0]
    if packed is not None:
        width = heads * config.hidden_size // config.num_attention_heads
        projection = projection[..., -2 * width : -width]
    projection = projection.reshape(tokens, heads, -1).transpose(0, 1)
    return projection, cache.layers[layer].keys[0]


@pytest.mark.parametrize(
    ("family", "tokens", "changes"),
    [
        ("llama", 40, {}),
        ("llama3.1", 90, {}),
        ("qwen3", 40, {}),
        ("phi3-long", 24, {}),
        ("phi3-long", 90, {}),
        (
            "phi3",
            40,
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        ("llama", 700, {"rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    ],
)  # fmt: skip
def test_unrotated_keys_are_the_projection(family: str, tokens: int, changes: dict) -> None:
    model = tiny_model(family, **changes)
    projected, cached = projected_and_cached(model, tokens, layer=1)
    rotation = rotation_of(model, tokens, layer=1)
    positions = torch.arange(tokens)
    torch.testing.assert_close(
        rotation.unrotate(cached, positions), projected, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(rotation.rotate(projected, positions), cached, rtol=1e-4, atol=1e-4)


def test_layers_that_rotate_differently_have_their_own_frequencies() -> None:
    model = tiny_model("gemma3")
    local = rotation_of(model.config, 40, layer=0).inverse_frequencies
    whole = rotation_of(model.config, 40, layer=1).inverse_frequencies
    rotary = model.model.rotary_emb
    torch.testing.assert_close(local, rotary.sliding_attention_inv_freq)
    torch.testing.assert_close(whole, rotary.full_attention_inv_freq)
    assert not torch.equal(local, whole)


def test_other_styles_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="'glm4' does not rotate the two halves"):
        rotation_of(tiny_model("glm4"), 16)


def test_rotation_depends_on_the_difference_of_positions_only() -> None:
    generator = torch.Generator().manual_seed(0)
    rotation = Rotation(10000.0 ** -torch.linspace(0, 0.9, 4), 1.25)
    query, key = torch.randn(2, 1, 12, generator=generator)
    near = rotation.rotate(query, torch.tensor([9])) @ rotation.rotate(key, torch.tensor([4])).T
    far = rotation.rotate(query, torch.tensor([109])) @ rotation.rotate(key, torch.tensor([104])).T
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)


def test_dimensions_beyond_the_rotated_part_stay() -> None:
    rotation = Rotation(torch.tensor([1.0, 0.5]))
    keys = torch.arange(12.0).view(2, 6)
    assert torch.equal(rotation.rotate(keys, torch.tensor([3, 8]))[:, 4:], keys[:, 4:])


def test_half_precision_keys_stay_half_precision() -> None:
    keys = torch.ones(3, 4, dtype=torch.bfloat16)
    assert Rotation(torch.ones(2)).rotate(keys, torch.arange(3)).dtype == torch.bfloat16


def test_the_mean_of_rotations_is_a_matrix() -> None:
    rotation = Rotation(torch.tensor([1.0, 0.1, 0.01]), scaling=1.5)
    keys = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7, 20)
    turned = torch.stack([rotation.rotate(keys, one.expand(4)) for one in positions]).mean(dim=0)
    torch.testing.assert_close(keys @ rotation.mean_matrix(positions, 8).T, turned)
