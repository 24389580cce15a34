"""Column sums against the whole attention matrix."""

from __future__ import annotations

import importlib

import pytest
import torch

from catekv import kernels

module = importlib.import_module("catekv.kernels.column_sums")


def tensors(batch: int, group: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(batch, 2 * group, tokens, 8, generator=generator)
    return queries, torch.randn(batch, 2, tokens, 8, generator=generator)


def whole_matrix(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, valid: torch.Tensor | None = None
) -> torch.Tensor:
    group = queries.shape[1] // keys.shape[1]
    logits = queries.double() @ keys.double().repeat_interleave(group, 1).transpose(2, 3) * scaling
    tokens, asked = keys.shape[2], queries.shape[2]
    hidden = torch.arange(tokens) > torch.arange(tokens - asked, tokens)[:, None]
    if valid is not None:
        hidden = hidden | ~valid[:, None, None]
    weights = logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    if valid is not None:
        weights = weights.masked_fill(~valid[:, None, -asked:, None], 0.0)
    return weights.sum(dim=2).float()


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("scaling", [0.35, 40.0])
@pytest.mark.parametrize("block", [1 << 20, 700])
def test_sums_equal_the_whole_matrix(group, scaling, block, monkeypatch) -> None:
    monkeypatch.setattr(module, "CPU_BLOCK_BYTES", block)
    queries, keys = tensors(2, group, 37)
    torch.testing.assert_close(
        kernels.column_sums(queries, keys, scaling),
        whole_matrix(queries, keys, scaling),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("scaling", [0.35, 40.0])
def test_padding_neither_asks_nor_is_seen(scaling, monkeypatch) -> None:
    monkeypatch.setattr(module, "CPU_BLOCK_BYTES", 700)
    queries, keys = tensors(2, 2, 29)
    valid = torch.ones(2, 29, dtype=torch.bool)
    valid[1, :9] = False
    found = kernels.column_sums(queries, keys, scaling, valid)
    assert not bool(found[1, :, :9].any())
    alone = kernels.column_sums(queries[1:, :, 9:], keys[1:, :, 9:], scaling)
    torch.testing.assert_close(found[1:, :, 9:], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum(-1)[1], torch.full((4,), 20.0))


@pytest.mark.parametrize("scaling", [0.35, 40.0])
def test_parts_of_a_prompt_add_up(scaling) -> None:
    queries, keys = tensors(1, 2, 31)
    whole = kernels.column_sums(queries, keys, scaling)
    parts = torch.zeros_like(whole)
    for start, stop in ((0, 10), (10, 11), (11, 31)):
        part = kernels.column_sums(queries[:, :, start:stop], keys[:, :, :stop], scaling)
        parts[..., :stop] += part
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_no_temporary_exceeds_the_block(monkeypatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.untyped_storage().nbytes())
            return result

    monkeypatch.setattr(module, "CPU_BLOCK_BYTES", 1 << 16)
    queries, keys = tensors(1, 2, 900)
    with Largest() as largest:
        kernels.column_sums(queries, keys, 0.35)
    assert largest.size <= max(1 << 16, queries.nbytes)
