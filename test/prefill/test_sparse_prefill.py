"""Sparse prefill: the estimate, and the call of the package's kernel (imitated here)."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.kernels import sparse_prefill
from catekv.kernels.sparse_prefill import estimate, minference_attention
from catekv.methods.head_mask import HeadMask

MASK = HeadMask(torch.tensor([[0, 1]]), {"ratio": 0.5})


def kernel(query: Tensor, key: Tensor, value: Tensor, columns: Tensor, diagonals: Tensor) -> Tensor:
    """What the package's kernel computes, with exact columns and diagonals (its blocks are wider):
    the logits are divided by the root of the head dimension."""
    tokens = query.shape[2]
    position = torch.arange(tokens)
    distance = position[:, None] - position
    seen = torch.zeros(*query.shape[:2], tokens, tokens, dtype=torch.bool)
    for head in range(query.shape[1]):
        seen[0, head][:, columns[0, head]] = True
        seen[0, head] |= torch.isin(distance, diagonals[0, head])
    logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return logits.masked_fill(~(seen & (distance >= 0)), -torch.inf).softmax(dim=-1) @ value


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("minference")
    module.__spec__ = ModuleSpec("minference", None)
    module.vertical_slash_sparse_attention = kernel
    monkeypatch.setitem(sys.modules, "minference", module)


def tensors(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, tokens, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, tokens, 8, generator=generator)
    return query, key, value


def dense(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    tokens = query.shape[2]
    logits = query @ key.transpose(2, 3) * scaling
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return (logits.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ value).transpose(1, 2)


def test_the_estimate_sums_columns_and_diagonals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_prefill, "LAST_QUERIES", 3)
    monkeypatch.setattr(sparse_prefill, "FIRST_COLUMNS", 1)
    monkeypatch.setattr(sparse_prefill, "NEAR_DIAGONALS", 1)
    query, key, _ = tensors(12)
    columns, diagonals = estimate(query[0, :2], key[0, 0], 0.4, 4, 4)
    logits = query[0, :2, -3:] @ key[0, 0].T * 0.4
    position = torch.arange(12)
    distance = position[-3:, None] - position
    weights = logits.masked_fill(distance < 0, -torch.inf).softmax(dim=-1)
    for head in range(2):
        column = weights[head].sum(dim=0)
        diagonal = torch.stack([weights[head][distance == d].sum() for d in range(12)])
        column[0] = diagonal[0] = torch.inf
        assert columns[head].tolist() == column.topk(4).indices.tolist()
        assert diagonals[head].tolist() == diagonal.topk(4).indices.tolist()


@pytest.mark.usefixtures("package")
def test_with_all_columns_it_is_dense_attention() -> None:
    query, key, value = tensors(40)
    torch.testing.assert_close(
        minference_attention(query, key, value, 0.2, None), dense(query, key, value, 0.2)
    )


@pytest.mark.usefixtures("package")
def test_padding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("COLUMNS", 4), ("DIAGONALS", 5), ("FIRST_COLUMNS", 1)):
        monkeypatch.setattr(sparse_prefill, name, count)
    monkeypatch.setattr(sparse_prefill, "NEAR_DIAGONALS", 2)
    query, key, value = tensors(40)
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, :17] = False
    together = minference_attention(query, key, value, 0.2, valid)
    alone = minference_attention(query[1:, :, 17:], key[1:, :, 17:], value[1:, :, 17:], 0.2, None)
    torch.testing.assert_close(together[1:, 17:], alone)
    assert not torch.allclose(together[0], dense(query, key, value, 0.2)[0], atol=1e-2)


@pytest.mark.usefixtures("package")
def test_chunks_of_a_prompt_are_refused() -> None:
    query, key, value = tensors(40)
    with pytest.raises(UserError, match="got 10 of 40 tokens; prefill with chunk_size=None"):
        minference_attention(query[:, :, -10:], key, value, 0.2, None)


def test_without_the_package_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_prefill, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(UserError, match=r"pip install 'catekv\[minference\]'"):
        methods.create("catekv", head_mask=MASK, prefill="minference")
    with pytest.raises(UserError, match="unknown prefill 'x'; use dense or minference"):
        methods.create("catekv", head_mask=MASK, prefill="x")


@pytest.mark.usefixtures("package")
def test_with_the_package_the_option_is_taken() -> None:
    assert methods.create("catekv", head_mask=MASK, prefill="minference").prefill == "minference"
