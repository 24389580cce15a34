"""What the cache says it stores is what it allocates, and prefill never holds two dense layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import PROMPT, left_padding, random_ids, two_turns, with_attention
from tiny_models import LAYERS, KeepEverything, RandomKeep
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache

from catekv.cache.cache import RaggedCache
from catekv.cache.layer import RaggedLayer
from catekv.methods.base import Needs
from catekv.model import CateKVModel
from catekv.prefill import layerwise


def reachable_tensors(root: Any) -> list[Tensor]:
    """Every tensor that hangs on an object, found without the object's own bookkeeping."""
    found, seen, queue = [], set(), [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type | str | bytes | int | float):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, dict):
            queue += list(item.values())
        elif isinstance(item, list | tuple | set):
            queue += list(item)
        elif type(item).__module__.startswith(("catekv", "transformers.cache")):
            queue += list(vars(item).values())
    return found


def allocated(cache: Any) -> int:
    storages = {}
    for tensor in reachable_tensors(cache.layers):
        if tensor.ndim:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
@pytest.mark.parametrize("method", [KeepEverything(), RandomKeep(0.5)], ids=["all", "half"])
def test_stored_bytes_are_the_storages(family: str, batch: int, method: Any):
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, method, PROMPT)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    layerwise.prefill(model, random_ids(batch, PROMPT, seed=0), cache, mask)
    assert cache.stored_bytes() == allocated(cache)
    two_turns(model, cache, mask, batch, feed_prompt=False)
    assert cache.stored_bytes() == allocated(cache)


def test_dense_and_observed_states_count_too():
    model = with_attention("phi3", "catekv")
    for cache in (
        RaggedCache(model.config, RandomKeep(), None),
        RaggedCache(model.config, None, PROMPT, hold=Needs(window=8)),
    ):
        layerwise.prefill(model, random_ids(2, PROMPT, seed=0), cache)
        assert not cache.compressed
        assert cache.stored_bytes() == allocated(cache) > 0


def test_bytes_are_those_of_the_kept_tokens():
    model = with_attention("llama", "catekv")
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    layerwise.prefill(model, random_ids(1, PROMPT, seed=0), cache)
    kept = sum(int(lengths.sum()) for lengths in cache.lengths())
    rows = sum(lengths.numel() for lengths in cache.lengths())
    head_dim = 8
    bookkeeping = rows * (8 + 4 + 8)  # offset, length, and which query row reads it
    assert cache.stored_bytes() == kept * 2 * head_dim * 4 + bookkeeping
    assert cache.kept_share() == pytest.approx(kept / (rows * PROMPT))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_full_bytes_are_those_of_an_ordinary_cache(family: str):
    model = with_attention(family, "sdpa")
    plain = DynamicCache(config=model.config)
    two_turns(model, plain, left_padding(3, PROMPT), 3)
    expected = sum(t.numel() * 4 for layer in plain.layers for t in (layer.keys, layer.values))
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    two_turns(model, cache, left_padding(3, PROMPT), 3)
    assert cache.full_bytes() == expected
    assert cache.stored_bytes() < cache.full_bytes()


def test_padding_is_not_kept_and_not_counted():
    model = with_attention("llama", "catekv")
    mask = left_padding(3, PROMPT)
    cache = RaggedCache(model.config, KeepEverything(), PROMPT)
    layerwise.prefill(model, random_ids(3, PROMPT, seed=0), cache, mask)
    for lengths in cache.lengths():
        assert torch.equal(lengths, mask.sum(-1)[:, None].expand_as(lengths))
    assert cache.kept_share() == 1.0


@pytest.mark.parametrize("chunk_size", [None, 16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_at_most_one_uncompressed_layer_is_alive(
    family: str, batch: int, chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
):
    """Counted on real storages: those of every layer's dense keys and values still allocated."""
    model = with_attention(family, "catekv")
    ids = random_ids(batch, PROMPT, seed=0)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    layerwise.prefill(model, ids, RaggedCache(model.config, RandomKeep(), PROMPT), mask, 16)
    dense: dict[int, list[StorageWeakRef]] = {}
    alive_counts: list[int] = []
    original = RaggedLayer.update

    def counted(layer: RaggedLayer, keys: Tensor, values: Tensor, *arguments: Any, **options: Any):
        result = original(layer, keys, values, *arguments, **options)
        dense[layer.index] = [StorageWeakRef(t.untyped_storage()) for t in layer.buffer.tensors()]
        alive_counts.append(
            sum(not all(ref.expired() for ref in references) for references in dense.values())
        )
        return result

    monkeypatch.setattr(RaggedLayer, "update", counted)
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    layerwise.prefill(model, ids, cache, mask, chunk_size)
    calls = LAYERS * (1 if chunk_size is None else -(-PROMPT // chunk_size))
    assert len(alive_counts) == calls
    assert max(alive_counts) == 1
    assert cache.compressed


def test_counting_notices_a_cache_that_keeps_its_layers():
    """The same count on a prompt that is only observed: all layers stay dense."""
    model = with_attention("llama", "catekv")
    cache = RaggedCache(model.config, None, PROMPT, hold=Needs(window=4))
    layerwise.prefill(model, random_ids(1, PROMPT, seed=0), cache)
    assert sum(layer.dense_tokens > 0 for layer in cache.ragged_layers) == LAYERS


def test_prefill_temporaries_are_as_large_as_a_chunk(monkeypatch: pytest.MonkeyPatch):
    """Neither the feed-forward part nor a norm nor the head sees the whole prompt."""
    wrapped = CateKVModel(with_attention("llama", "catekv"), RandomKeep())
    widths: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
        for name, module in wrapped.model.named_modules()
        if name.endswith(("mlp", "norm", "layernorm", "lm_head"))
    ]
    ids = random_ids(1, PROMPT, seed=0)
    layerwise.prefill(wrapped.model, ids, RaggedCache(wrapped.config, RandomKeep(), PROMPT))
    assert max(widths) == PROMPT
    widths.clear()
    cache = RaggedCache(wrapped.config, RandomKeep(), PROMPT)
    layerwise.prefill(wrapped.model, ids, cache, None, 16)
    for hook in hooks:
        hook.remove()
    assert max(widths) == 16
