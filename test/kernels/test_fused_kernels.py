"""The kernels of the fused decode step: each against its definition, the definitions against the
modules of transformers."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from far_apart import far_apart
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels import HeadNorms
from catekv.kernels.dispatch import has_triton
from catekv.kernels.rotary_append import rotated

#: fp16 sums in another order may round otherwise: one unit in the last place.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}
TYPES = [torch.float32, torch.float16]
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed")
KV_HEADS, QUERY_HEADS, CAPACITY = 2, 6, 5
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "glm4"]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(
        found, wanted, atol=TOLERANCE[wanted.dtype], rtol=TOLERANCE[wanted.dtype]
    )


def modeling(family: str) -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


@needs_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("add", [False, True])
def test_norm_is_its_definition(dtype: torch.dtype, width: int, add: bool) -> None:
    states = random(3, 1, width, seed=1, dtype=dtype)
    states[1] *= 1e-3  # where epsilon counts
    residual = random(3, 1, width, seed=2, dtype=dtype) if add else None
    weight = random(width, seed=3, dtype=dtype)
    before = states.clone()
    summed, normed = kernels.rms_norm(states, weight, 1e-5, residual, backend="triton")
    wanted = kernels.rms_norm(states, weight, 1e-5, residual, backend="torch")
    assert torch.equal(summed, wanted[0])
    close(normed, wanted[1])
    assert torch.equal(states, before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [*TYPES, torch.bfloat16])
def test_the_norm_of_a_model_is_computed_to_the_bit(family: str, dtype: torch.dtype) -> None:
    name = {"phi3": "Phi3", "glm4": "Glm4"}.get(family, family.capitalize())
    module = getattr(modeling(family), f"{name}RMSNorm")(48, 1e-6).to(dtype)
    with torch.no_grad():
        module.weight.copy_(random(48, seed=4))
        states, residual = random(2, 1, 48, seed=5, dtype=dtype), random(48, seed=6, dtype=dtype)
        wanted = residual + states
        summed, normed = kernels.rms_norm(states, module.weight, 1e-6, residual)
        assert torch.equal(summed, wanted)
        assert torch.equal(normed, module(wanted))


def inputs(dim: int, rotary: int, dtype: torch.dtype, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Projections and rotary tables of each sequence's position."""
    projected = random(batch, 1, (QUERY_HEADS + 2 * KV_HEADS) * dim, seed=7, dtype=dtype)
    angles = random(batch, 1, rotary // 2, seed=8).repeat(1, 1, 2)
    return projected, angles.cos().to(dtype), angles.sin().to(dtype)


def tails(dim: int, dtype: torch.dtype, batch: int) -> tuple[Tensor, Tensor]:
    """Buffers whose heads do not lie behind each other."""
    room = torch.full((batch, CAPACITY, KV_HEADS, dim), -1.0, dtype=dtype)
    return room.transpose(1, 2), torch.full((batch, KV_HEADS, CAPACITY, dim), -1.0, dtype=dtype)


@needs_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("dim", "rotary", "interleaved", "norm"),
    [(16, 16, False, False), (24, 12, False, True), (16, 8, True, False), (12, 12, True, True)],
)
@pytest.mark.parametrize(("batch", "tables"), [(1, 1), (3, 3), (3, 1)])
def test_rotary_append_is_its_definition(
    dtype: torch.dtype, dim: int, rotary: int, interleaved: bool, norm: bool, batch: int,
    tables: int,
) -> None:  # fmt: skip
    projected, cos, sin = inputs(dim, rotary, dtype, batch)
    cos, sin = cos[:tables], sin[:tables]
    norms = None
    if norm:
        norms = HeadNorms(random(dim, seed=9, dtype=dtype), random(dim, seed=10, dtype=dtype), 1e-6)
    found = {}
    for backend in ("torch", "triton"):
        held = tails(dim, dtype, batch)
        queries = kernels.rotary_append(
            projected, cos, sin, *held, torch.tensor([4], dtype=torch.int32), QUERY_HEADS,
            interleaved=interleaved, norms=norms, backend=backend,
        )  # fmt: skip
        assert queries.is_contiguous()
        found[backend] = (queries, *held)
    for ours, wanted in zip(found["triton"], found["torch"], strict=True):
        close(ours, wanted)
    keys, values = found["triton"][1:]
    for tail in (keys, values):
        others = torch.arange(CAPACITY) != 3
        assert (tail[:, :, others] == -1).all()
        assert not (tail[:, :, 3] == -1).any()
    assert torch.equal(values[:, :, 3].flatten(), projected[:, 0, -KV_HEADS * dim :].flatten())


@needs_triton
@pytest.mark.parametrize("length", [-3, 0, CAPACITY + 1, 400])
def test_columns_outside_of_the_tail_are_not_written(length: int) -> None:
    projected, cos, sin = inputs(16, 16, torch.float32, 2)
    for backend in ("torch", "triton"):
        room = torch.full((2, KV_HEADS, 3 * CAPACITY, 16), -1.0)
        middle = room[:, :, CAPACITY : 2 * CAPACITY]
        kernels.rotary_append(
            projected, cos, sin, middle, middle.clone(), torch.tensor([length]), QUERY_HEADS,
            backend=backend,
        )  # fmt: skip
        assert (room == -1).all(), backend


@needs_triton
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequences", "heads", "tokens"])
def test_tails_may_lie_far_apart(axis: int) -> None:
    """Offsets beyond 2^31 elements; memory that is never written to takes no room."""
    heads = batch = 3
    _, cos, sin = inputs(16, 16, torch.float16, batch)
    projected = random(batch, 1, (QUERY_HEADS + 2 * heads) * 16, seed=7, dtype=torch.float16)
    near = tuple(projected.new_zeros(batch, heads, CAPACITY, 16) for _ in range(2))
    far = tuple(far_apart(tail, axis) for tail in near)
    for held, backend in ((far, "triton"), (near, "torch")):
        kernels.rotary_append(
            projected, cos, sin, *held, torch.tensor([CAPACITY]), QUERY_HEADS, backend=backend
        )
    close(far[0], near[0])
    assert torch.equal(far[1], near[1])


@needs_triton
def test_the_last_of_many_tokens_is_normed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets beyond 2^31 elements; no token before the last is computed or takes room."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    from catekv.kernels.rms_norm_triton import _rms_norm

    width = 64
    last = (1 << 31) // width
    own = InterpreterBuilder.create_get_program_id

    def far(builder: Any, axis: int) -> Any:
        found = own(builder, axis)
        return found if axis else TensorHandle(found.data + last, found.dtype)

    states, residual, summed, normed = (
        torch.empty(last + 1, width, dtype=torch.float16) for _ in range(4)
    )
    states[last] = random(width, seed=1, dtype=torch.float16)
    residual[last] = random(width, seed=2, dtype=torch.float16)
    weight = random(width, seed=3, dtype=torch.float16)
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", far)
    _rms_norm[(1,)](
        states, residual, weight, summed, normed, 1e-5, WIDTH=width, BLOCK=width, ADD=True
    )
    wanted = kernels.rms_norm(states[last], weight, 1e-5, residual[last], backend="torch")
    assert torch.equal(summed[last], wanted[0])
    close(normed[last], wanted[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [*TYPES, torch.bfloat16])
def test_rotation_is_that_of_the_model_to_the_bit(family: str, dtype: torch.dtype) -> None:
    partial = family in ("phi3", "glm4")
    queries = random(2, 3, 1, 16, seed=11, dtype=dtype)
    angles = random(2, 1, 4 if partial else 8, seed=12).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    wanted, _ = modeling(family).apply_rotary_pos_emb(queries, queries, cos, sin)
    assert torch.equal(rotated(queries, cos, sin, family == "glm4"), wanted)


# in the interpreter; it makes the zero that it is to make
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@needs_triton
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [96, 700])
def test_silu_multiply_is_its_definition(dtype: torch.dtype, width: int) -> None:
    gate_up = random(2, 1, 2 * width, seed=13, dtype=dtype)
    gate_up[1] *= 40  # where the exponential leaves the range of half precision
    found = kernels.silu_multiply(gate_up, backend="triton")
    close(found, kernels.silu_multiply(gate_up, backend="torch"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_of_a_model_is_computed_to_the_bit(family: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, hidden_size=32, intermediate_size=24, pad_token_id=0)
    name = {"phi3": "Phi3", "glm4": "Glm4"}.get(family, family.capitalize())
    module = getattr(modeling(family), f"{name}MLP")(config).bfloat16()
    states = random(3, 1, 32, seed=14, dtype=torch.bfloat16)
    with torch.no_grad():
        if hasattr(module, "gate_up_proj"):
            gate_up = module.gate_up_proj(states)
        else:
            gate_up = torch.cat([module.gate_proj(states), module.up_proj(states)], dim=-1)
        assert torch.equal(module.down_proj(kernels.silu_multiply(gate_up)), module(states))


def test_what_a_kernel_cannot_read_is_refused() -> None:
    wide = random(2, 1, 64, seed=15)
    with pytest.raises(UserError, match="without gaps"):
        kernels.rms_norm(wide[..., ::2], wide[0, 0, :32], 1e-6, backend="triton")
    with pytest.raises(UserError, match="different types"):
        kernels.rms_norm(wide, wide[0, 0].half(), 1e-6, backend="triton")
    with pytest.raises(UserError, match="without gaps"):
        kernels.silu_multiply(wide[..., ::2], backend="triton")
    projected, cos, sin = inputs(16, 16, torch.float32, 1)
    length = torch.tensor([1])
    with pytest.raises(UserError, match="one new token"):
        kernels.rotary_append(
            projected.repeat(1, 2, 1), cos, sin, *tails(16, torch.float32, 1), length, QUERY_HEADS,
            backend="triton",
        )  # fmt: skip
    with pytest.raises(UserError, match="different types"):
        kernels.rotary_append(
            projected, cos, sin, *tails(16, torch.float16, 1), length, QUERY_HEADS,
            backend="triton",
        )  # fmt: skip
