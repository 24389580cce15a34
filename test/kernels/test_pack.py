"""A selection to flat storage: the definition, and the kernel against it."""

from __future__ import annotations

import pytest
import torch
from far_apart import far_apart
from torch import Tensor

from catekv import kernels
from catekv.kernels.packing import pack

BATCH, HEADS, TOKENS, DIM, VALUE_DIM = 3, 3, 75, 24, 16
BACKENDS = ["torch", "triton"]


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys and values as a model's projections leave them: tokens before heads in memory."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(BATCH, TOKENS, HEADS, DIM, generator=generator)
    values = torch.randn(BATCH, TOKENS, HEADS, VALUE_DIM, generator=generator)
    return keys.to(dtype).transpose(1, 2), values.to(dtype).transpose(1, 2)


def selection() -> Tensor:
    """Random rows, one that keeps nothing, one that keeps all, and one with the two ends only."""
    keep = torch.rand(BATCH, HEADS, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.4
    keep[0, 1] = False
    keep[1, 0] = True
    keep[1, 2] = False
    keep[1, 2, [0, -1]] = True
    return keep


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_hold_what_was_kept_in_prompt_order(backend: str, dtype: torch.dtype):
    keys, values = tensors(dtype)
    keep = selection()
    lengths = keep.sum(dim=-1)
    # storage order is the caller's: here the last row comes first
    offsets = lengths.flatten().flip(0).cumsum(0).flip(0).view(BATCH, HEADS) - lengths
    flat_keys, flat_values = kernels.pack(
        keys, values, keep, offsets, int(lengths.sum()), backend=backend
    )
    for b in range(BATCH):
        for head in range(HEADS):
            row = slice(int(offsets[b, head]), int(offsets[b, head] + lengths[b, head]))
            assert torch.equal(flat_keys[row], keys[b, head][keep[b, head]])
            assert torch.equal(flat_values[row], values[b, head][keep[b, head]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_keeping_nothing_needs_no_storage(backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CATEKV_KERNELS", backend)
    prefix = pack(*tensors(), torch.zeros(BATCH, HEADS, TOKENS, dtype=torch.bool))
    assert prefix.slots == 0
    assert prefix.lengths.tolist() == [[0] * HEADS] * BATCH


def test_the_prefix_is_the_same_whatever_copies_it(monkeypatch: pytest.MonkeyPatch):
    made = []
    for backend in BACKENDS:
        monkeypatch.setenv("CATEKV_KERNELS", backend)
        made.append(pack(*tensors(), selection()))
    assert made[0].host_rows == made[1].host_rows
    assert torch.equal(made[0].keys, made[1].keys)
    assert torch.equal(made[0].values, made[1].values)
    # longest rows first: rows of one length are neighbours
    assert made[0].offsets[1, 0] == 0


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequences", "heads", "tokens"])
def test_prompts_and_storage_beyond_two_to_the_31_numbers(axis: int):
    """A prompt spread over that much memory, its last row that far behind in storage."""
    keys, values = tensors(torch.float16)
    keep = selection()
    lengths = keep.sum(dim=-1)
    offsets = lengths.flatten().cumsum(0).view(BATCH, HEADS) - lengths
    slots = int(lengths.sum())
    wanted = kernels.pack(keys, values, keep, offsets, slots, backend="torch")
    gap = (1 << 31) // VALUE_DIM
    behind = offsets.clone()
    behind[-1, -1] += gap
    start, stop = int(behind[-1, -1]), slots + gap
    found = kernels.pack(
        far_apart(keys, axis), far_apart(values, axis), keep, behind, stop, backend="triton"
    )
    for far, near in zip(found, wanted, strict=True):
        assert start * far.shape[-1] >= 1 << 31
        assert torch.equal(far[start:], near[start - gap :])
        assert torch.equal(far[: start - gap], near[: start - gap])
