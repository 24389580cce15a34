"""The fused decode step on the device: its kernels, and whole models with it and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu import DEVICE, HALVES, MUST_ASK, TINY, TOLERANCE, TYPES, relative_error, short_name
from scenarios import left_padding, random_ids
from tiny_models import RandomKeep, tiny_model
from torch import Tensor

from catekv import CateKVModel, kernels
from catekv.decode.step import DecodeStep
from catekv.kernels import HeadNorms
from catekv.kernels.dispatch import VARIABLE

WIDTHS = [64] if TINY else [576, 2048, 4096, 5120, 8192, 16384]
DIMS = [16] if TINY else [64, 96, 128, 256]
BATCH, QUERY_HEADS, KV_HEADS, CAPACITY = (2, 4, 2, 5) if TINY else (5, 32, 8, 300)
FAMILIES = ["llama", "qwen3", "glm4"] if TINY else [
    "llama", "llama3.1", "mistral", "qwen2", "qwen3", "phi3", "phi3-long", "glm4", "glm"
]  # fmt: skip
PROMPT, STEPS = 40, 3 if TINY else 12
LOGITS = {torch.float32: 2e-4, torch.bfloat16: 3e-2}


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(device=DEVICE, dtype=dtype)


def wide(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in float32 on the CPU."""
    return [tensor.float().cpu() for tensor in tensors]


@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("add", [False, True])
def test_norm(dtype: torch.dtype, width: int, add: bool) -> None:
    states, weight = random(BATCH, 1, width, dtype=dtype), random(width, dtype=dtype)
    residual = random(BATCH, 1, width, dtype=dtype) if add else None
    summed, normed = kernels.rms_norm(states, weight, 1e-5, residual, backend="triton")
    # in the stored type the definition rounds in the same places
    wanted = kernels.rms_norm(
        states.cpu(), weight.cpu(), 1e-5, None if residual is None else residual.cpu()
    )
    assert torch.equal(summed.cpu(), wanted[0])
    assert relative_error(normed, wanted[1]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(
    ("parts", "interleaved", "norm"),
    [(1, False, False), (1, False, True), (2, False, False), (2, True, False)],
)
def test_rotary_append(
    dtype: torch.dtype, dim: int, parts: int, interleaved: bool, norm: bool
) -> None:
    projected = random(BATCH, 1, (QUERY_HEADS + 2 * KV_HEADS) * dim, dtype=dtype)
    angles = (40 * torch.rand(BATCH, 1, dim // parts // 2)).repeat(1, 1, 2).to(DEVICE)
    tables = angles.cos().to(dtype), angles.sin().to(dtype)
    weights = random(2, dim, dtype=dtype)
    found = []
    for place in (DEVICE, "cpu"):
        norms = HeadNorms(*weights.to(place), 1e-6) if norm else None
        tails = [torch.zeros(BATCH, KV_HEADS, CAPACITY, dim, dtype=dtype, device=place)
                 for _ in range(2)]  # fmt: skip
        length = torch.tensor([CAPACITY - 1], dtype=torch.int32, device=place)
        queries = kernels.rotary_append(
            projected.to(place), *(table.to(place) for table in tables), *tails, length,
            QUERY_HEADS, interleaved=interleaved, norms=norms,
            backend="triton" if not found else "torch",
        )  # fmt: skip
        found.append([queries, *tails])
    for ours, theirs in zip(*found, strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE[dtype]
    assert torch.equal(found[0][2].cpu(), found[1][2])


@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
@pytest.mark.parametrize("width", [96] if TINY else [1536, 14336, 27648])
def test_silu_multiply(dtype: torch.dtype, width: int) -> None:
    gate_up = random(BATCH, 1, 2 * width, dtype=dtype)
    found = kernels.silu_multiply(gate_up, backend="triton")
    assert relative_error(found, kernels.silu_multiply(gate_up.cpu())) <= TOLERANCE[dtype]


@torch.no_grad()
def logits_of(model: CateKVModel, batch: int, graph: str, fused_step: str) -> tuple[Tensor, Any]:
    mask = left_padding(batch, PROMPT).to(DEVICE) if batch > 1 else None
    prompt = random_ids(batch, PROMPT, seed=0).to(DEVICE)
    context = model.prefill(prompt, method=RandomKeep(), attention_mask=mask)
    step = DecodeStep(
        model.model, context.cache, 4, graph=graph, attention_mask=mask, fused_step=fused_step
    )
    found = [
        step(random_ids(batch, 1, seed=1 + number).to(DEVICE)).clone() for number in range(STEPS)
    ]
    return torch.stack(found), step


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES[:1]], ids=short_name)
@pytest.mark.parametrize("graph", ["off"] if MUST_ASK else ["off", "auto"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_modules(
    family: str, batch: int, graph: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if MUST_ASK:
        monkeypatch.setenv(VARIABLE, "triton")
    if TINY and dtype != torch.float32:
        pytest.skip("half precision on a CPU says nothing of the device")
    # heads of 64 numbers: products of fewer have no kernel on a device
    model = CateKVModel(
        tiny_model(
            family, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            **({} if TINY else {"hidden_size": 256, "head_dim": 64}),
        ).to(device=DEVICE, dtype=dtype)
    )  # fmt: skip
    wanted, _ = logits_of(model, batch, "off", "off")
    found, step = logits_of(model, batch, graph, "on")
    assert step.fused
    assert step.captured == (graph == "auto"), step.reason
    assert relative_error(found, wanted) <= LOGITS.get(dtype, 3e-2)
