"""New tokens in tail buffers of fixed size: the definition, and the kernel against it."""

from __future__ import annotations

import pytest
import torch
from far_apart import far_apart
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError

BATCH, HEADS, CAPACITY, DIM, VALUE_DIM = 3, 3, 9, 24, 16
BACKENDS = ["torch", "triton"]


def buffers(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (
        torch.full((BATCH, HEADS, CAPACITY, DIM), -1.0, dtype=dtype),
        torch.full((BATCH, HEADS, CAPACITY, VALUE_DIM), -1.0, dtype=dtype),
    )


def projections(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys and values as a model's projections leave them: tokens before heads in memory."""
    generator = torch.Generator().manual_seed(tokens)
    keys = torch.randn(BATCH, tokens, HEADS, DIM, generator=generator)
    values = torch.randn(BATCH, tokens, HEADS, VALUE_DIM, generator=generator)
    return keys.to(dtype).transpose(1, 2), values.to(dtype).transpose(1, 2)


def length(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "used"), [(1, 1), (1, 6), (3, 5), (9, 9), (1, 9)])
def test_the_last_columns_in_use_hold_the_new_tokens(
    backend: str, dtype: torch.dtype, tokens: int, used: int
):
    tails, new = buffers(dtype), projections(tokens, dtype)
    kernels.append(*tails, *new, length(used), backend=backend)
    for tail, source in zip(tails, new, strict=True):
        assert torch.equal(tail[:, :, used - tokens : used], source)
        assert (tail[:, :, : used - tokens] == -1).all()
        assert (tail[:, :, used:] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("used", [-7, 0, 2, 11, 12, 400])
def test_columns_outside_the_buffer_are_never_written(backend: str, used: int):
    """A wrong length loses tokens, but touches nothing that is not the tail's own column."""
    tokens = 3
    room = torch.full((BATCH, HEADS, 3 * CAPACITY, DIM), -1.0)
    tail_keys = room[:, :, CAPACITY : 2 * CAPACITY]
    _, tail_values = buffers()
    keys, values = projections(tokens)
    kernels.append(tail_keys, tail_values, keys, values, length(used), backend=backend)
    expected = torch.full_like(room, -1.0)
    for token in range(tokens):
        column = used - tokens + token
        if 0 <= column < CAPACITY:
            expected[:, :, CAPACITY + column] = keys[:, :, token]
    assert torch.equal(room, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_contiguous_and_sliced_sources_give_the_same(backend: str):
    keys, values = projections(2)
    wide = torch.zeros(BATCH, HEADS, 4, DIM + 8)
    wide[:, :, 1:3, :DIM] = keys
    one, other = buffers(), buffers()
    kernels.append(*one, keys.contiguous(), values.contiguous(), length(4), backend=backend)
    kernels.append(*other, wide[:, :, 1:3, :DIM], values, length(4), backend=backend)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_more_tokens_than_columns_are_refused():
    with pytest.raises(UserError, match="10 tokens do not fit into a tail of 9"):
        kernels.append(*buffers(), *projections(10), length(10))


def test_the_kernel_refuses_what_it_cannot_read_and_auto_does_not():
    keys, values = projections(2)
    scattered = keys.transpose(2, 3).contiguous().transpose(2, 3)
    tails = buffers()
    with pytest.raises(UserError, match="behind each other in memory"):
        kernels.append(*tails, scattered, values, length(2), backend="triton")
    kernels.append(*tails, scattered, values, length(2))
    assert torch.equal(tails[0][:, :, :2], keys)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequences", "heads", "tokens"])
def test_what_lies_beyond_two_to_the_31_numbers_is_reached(axis: int):
    used, tokens = CAPACITY, 3
    near, new = buffers(torch.float16), projections(tokens, torch.float16)
    kernels.append(*near, *new, length(used), backend="torch")
    far = tuple(far_apart(tail, axis) for tail in buffers(torch.float16))
    sources = (far_apart(source, axis) for source in new)
    kernels.append(*far, *sources, length(used), backend="triton")
    assert torch.equal(far[0], near[0])
    assert torch.equal(far[1], near[1])
