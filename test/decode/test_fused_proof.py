"""What the proof of a fused step notices: steps that are wrong in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from catekv.decode import fused_proof
from catekv.decode.decoder_parts import Decoder, Layer, Norm, NotFusedError, read_decoder
from catekv.decode.fused import FusedStep

TYPES = [torch.float32, torch.bfloat16]


def model_of(family: str, dtype: torch.dtype) -> Any:
    """With norms whose weights are not all one."""
    model = tiny_model(family)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(number))
    return model.to(dtype)


def joined(model: Any) -> Decoder:
    decoder = read_decoder(model)
    decoder.join()
    return decoder


def of_layer(change: Callable[[Layer], Layer]) -> Callable[[Decoder], Decoder]:
    """A change of the second layer."""

    def changed(decoder: Decoder) -> Decoder:
        first, second, *others = decoder.layers
        return replace(decoder, layers=(first, change(second), *others))

    return changed


def other_gate(layer: Layer) -> Layer:
    """Up before gate."""
    layer.gate_up.weight = layer.gate_up.weight.roll(len(layer.gate_up.weight) // 2, dims=0)
    return layer


def other_queries(layer: Layer) -> Layer:
    """Every query head reads with the next one's weights."""
    weight = layer.projection.weight.clone()
    queries = weight[: layer.query_heads * layer.head_dim]
    queries.copy_(queries.roll(layer.head_dim, dims=0))
    layer.projection.weight = weight
    return layer


WRONG: dict[str, tuple[str, Callable[[Decoder], Decoder]]] = {
    "pairs": ("llama", of_layer(lambda layer: replace(layer, interleaved=True))),
    "gate": ("llama", of_layer(other_gate)),
    "queries": ("llama", of_layer(other_queries)),
    "no head norms": ("qwen3", of_layer(lambda layer: replace(layer, head_norms=None))),
    "norm of another place": (
        "llama", of_layer(lambda layer: replace(layer, before_mlp=layer.before_attention))
    ),
    "a norm left out": ("glm4", of_layer(lambda layer: replace(layer, after_mlp=None))),
    "last norm": (
        "llama", lambda decoder: replace(decoder, norm=decoder.layers[0].before_mlp)
    ),
    "a layer twice": (
        "llama",
        lambda decoder: replace(decoder, layers=(*decoder.layers[:2], decoder.layers[1])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wrong", sorted(WRONG))
@torch.no_grad()
def test_a_wrong_step_is_found_out(wrong: str, dtype: torch.dtype) -> None:
    family, change = WRONG[wrong]
    model = model_of(family, dtype)
    decoder = joined(model)
    if family == "glm4":
        decoder = decoder.interleaved()
    fused_proof.prove(model, FusedStep(decoder))
    with pytest.raises(NotFusedError, match="off by"):
        fused_proof.prove(model, FusedStep(change(decoder)))


@pytest.mark.parametrize("dtype", TYPES)
@torch.no_grad()
def test_another_epsilon_is_found_out(dtype: torch.dtype) -> None:
    decoder = joined(model_of("llama", dtype))
    fused_proof.prove_norms(decoder)
    other = Norm(decoder.norm.module, 10 * decoder.norm.epsilon)
    with pytest.raises(NotFusedError, match="something else than the RMSNorm of Llama"):
        fused_proof.prove_norms(replace(decoder, norm=other))
