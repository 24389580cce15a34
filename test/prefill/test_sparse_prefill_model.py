"""A model whose prompt is read with sparse attention (the package's kernel is imitated densely)."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from scenarios import PROMPT, left_padding, random_ids, with_attention
from tiny_models import LAYERS
from torch import Tensor

from catekv import methods
from catekv.cache.cache import RaggedCache
from catekv.errors import UserError
from catekv.methods.head_mask import HeadMask
from catekv.prefill import layerwise

MASK = HeadMask(torch.ones(LAYERS, 4), {"ratio": 1.0})
calls: list[tuple[int, ...]] = []


def dense(query: Tensor, key: Tensor, value: Tensor, *indices: Tensor) -> Tensor:
    calls.append(tuple(query.shape))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("minference")
    module.__spec__ = ModuleSpec("minference", None)
    module.vertical_slash_sparse_attention = dense
    monkeypatch.setitem(sys.modules, "minference", module)
    calls.clear()


def last_logits(model: Any, batch: int, chunk_size: int | None = None, **options: Any) -> Tensor:
    method = methods.create("catekv", head_mask=MASK, **options)
    cache = RaggedCache(model.config, method, PROMPT)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    return layerwise.prefill(model, random_ids(batch, PROMPT, seed=0), cache, mask, chunk_size)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_package_attends_in_every_layer_and_sequence(family: str, batch: int):
    model = with_attention(family, "catekv")
    expected = last_logits(model, batch)
    assert not calls
    found = last_logits(model, batch, prefill="minference")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # one call per KV head; padding is left out
    assert [shape[2] for shape in calls[:4]] == [PROMPT] * 4
    assert len(calls) == LAYERS * batch * 4
    assert min(shape[2] for shape in calls) == PROMPT - 5 * (batch - 1)


def test_a_prompt_in_chunks_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="prefill with chunk_size=None"):
        last_logits(with_attention("llama", "catekv"), 1, chunk_size=25, prefill="minference")
