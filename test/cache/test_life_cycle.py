"""States of the cache: boundaries, positions, masks, taking back, copying, files, wrong use."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import (
    PROMPT,
    left_padding,
    random_ids,
    with_attention,
)
from tiny_models import LAYERS, KeepEverything, RandomKeep, tiny_model
from torch import Tensor
from transformers import DynamicCache

from catekv import HeadMask, methods
from catekv.cache.cache import RaggedCache
from catekv.errors import UserError
from catekv.kernels.ragged import Merged
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.selection import MergedSelection
from catekv.model import CateKVModel
from catekv.models.sharding import local_heads
from catekv.prefill import layerwise as prefill


@pytest.fixture
def model() -> Any:
    return with_attention("llama", "catekv")


@torch.no_grad()
def feed(model: Any, cache: Any, tokens: int, seed: int = 0, batch: int = 1) -> Tensor:
    return model(random_ids(batch, tokens, seed=seed), past_key_values=cache).logits


def test_true_length_and_mask_sizes_after_compression(model: Any):
    cache = RaggedCache(model.config, RandomKeep(0.3), PROMPT)
    feed(model, cache, PROMPT)
    assert cache.get_seq_length() == PROMPT
    assert cache.get_mask_sizes(1, 0) == (1, PROMPT)
    feed(model, cache, 5)
    assert cache.get_seq_length() == PROMPT + 5
    # the mask describes exactly the tail: its length and where it begins
    assert cache.get_mask_sizes(3, 0) == (5 + 3, PROMPT)


def test_before_compression_the_mask_describes_everything(model: Any):
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    feed(model, cache, 20)
    assert not cache.compressed
    assert cache.get_mask_sizes(7, 0) == (27, 0)


@pytest.mark.parametrize("sizes", [[60], [20, 20, 20], [59, 1], [7] * 8 + [4]])
def test_any_chunking_compresses_the_same(model: Any, sizes: list[int]):
    """Forward by forward, as transformers chunks: same choice, same window, same logits."""
    method = KeyedKeep()
    whole = RaggedCache(model.config, method, PROMPT)
    ids = random_ids(1, PROMPT + 6, seed=0)
    with torch.no_grad():
        model(ids[:, :PROMPT], past_key_values=whole)
        expected = model(ids[:, PROMPT:], past_key_values=whole).logits[:, -1]
        cache = RaggedCache(model.config, method, PROMPT)
        start = 0
        for size in [*sizes, 6]:
            logits = model(ids[:, start : start + size], past_key_values=cache).logits[:, -1]
            start += size
    for a, b in zip(cache.lengths(), whole.lengths(), strict=True):
        assert torch.equal(a, b)
    assert float((logits - expected).abs().max()) <= 1e-5


def test_overshoot_is_not_part_of_the_context(model: Any):
    """A forward beyond the boundary: the window ends at the boundary, the rest is tail."""
    method = KeyedKeep()
    whole = RaggedCache(model.config, method, PROMPT)
    over = RaggedCache(model.config, method, PROMPT)
    ids = random_ids(1, PROMPT + 9, seed=0)
    with torch.no_grad():
        model(ids[:, :PROMPT], past_key_values=whole)
        model(ids, past_key_values=over)
    for a, b in zip(over.ragged_layers, whole.ragged_layers, strict=True):
        assert a.tail_length == 9
        assert torch.equal(a.prefix.lengths, b.prefix.lengths)
    # deeper layers differ by rounding only: the first layer's storage is the very same
    assert torch.equal(over.layers[0].prefix.keys, whole.layers[0].prefix.keys)


class KeyedKeep(Method):
    """Keeps what the window attends to most: depends on keys and on the right queries."""

    name = "keyed_keep"

    @property
    def needs(self) -> Needs:
        return Needs(window=12)

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.queries.shape[2] == min(12, observed.tokens)
        mean = observed.queries.mean(dim=2).unflatten(1, (observed.keys.shape[1], -1)).mean(dim=2)
        score = (observed.keys @ mean[..., None])[..., 0]
        return Selection(score > 0)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


@pytest.mark.parametrize("sizes", [[9], [4, 5], [1] * 9])
def test_a_later_turn_in_pieces_gives_the_same(model: Any, sizes: list[int]):
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    feed(model, cache, PROMPT)
    whole = copy.deepcopy(cache)
    turn = random_ids(1, 9, seed=3)
    start = 0
    with torch.no_grad():
        expected = model(turn, past_key_values=whole).logits[:, -1]
        for size in sizes:
            logits = model(turn[:, start : start + size], past_key_values=cache).logits[:, -1]
            start += size
    assert float((logits - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("prefill_tokens", [None, PROMPT])
def test_transformers_own_chunked_prefill(model: Any, prefill_tokens: int | None):
    """``prefill_chunk_size`` feeds the prompt in several forwards; the tokens do not change."""
    ids = random_ids(1, PROMPT, seed=0)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    results = []
    for chunk in (None, 16):
        if chunk is not None:
            options["prefill_chunk_size"] = chunk
        cache = RaggedCache(model.config, KeyedKeep(), prefill_tokens)
        results.append(model.generate(ids, past_key_values=cache, **options))
        assert cache.compressed
        assert cache.get_seq_length() == PROMPT + 5
    assert torch.equal(*results)


def test_a_forward_of_another_thread_is_not_driven_in_chunks(model: Any):
    """While one thread prefills layer by layer, another gets the logits of all its tokens."""
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    ids = random_ids(1, 20, seed=4)
    expected = model(ids, past_key_values=DynamicCache(config=model.config)).logits
    found: list[Tensor] = []

    def other() -> None:
        with torch.no_grad():
            found.append(model(ids, past_key_values=DynamicCache(config=model.config)).logits)

    with prefill.layerwise(model, cache, 8):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


@torch.no_grad()
def test_padding_inside_the_tail_stays_hidden(model: Any):
    """Padding columns of an earlier turn lie in the tail: whatever they hold, nothing changes."""
    mask, turn_mask = left_padding(3, PROMPT), left_padding(3, 9)
    context = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    prefill.prefill(model, random_ids(3, PROMPT, seed=0), context, mask)
    whole = torch.cat([mask, turn_mask], dim=1)
    model(
        random_ids(3, 9, seed=20),
        past_key_values=context,
        attention_mask=whole,
        position_ids=prefill.positions_of(whole)[:, -9:],
    )
    disturbed = copy.deepcopy(context)
    for layer in disturbed.ragged_layers:
        layer.buffer.keys[1, :, :5] = 30.0
        layer.buffer.values[1, :, :5] = 30.0
    whole = torch.cat([whole, torch.ones(3, 1, dtype=torch.long)], dim=1)
    step, other = (
        model(
            random_ids(3, 1, seed=2),
            past_key_values=cache,
            attention_mask=whole,
            position_ids=prefill.positions_of(whole)[:, -1:],
        ).logits
        for cache in (context, disturbed)
    )
    assert torch.equal(step, other)


def test_a_deep_copy_is_independent_and_shares_the_prefix(model: Any):
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    feed(model, cache, PROMPT)
    feed(model, cache, 3, seed=1)
    twin = copy.deepcopy(cache)
    assert twin.layers[0].prefix is cache.layers[0].prefix
    assert twin.settings is not cache.settings
    assert all(layer.settings is twin.settings for layer in twin.ragged_layers)
    alone = feed(model, cache, 4, seed=2)
    feed(model, twin, 2, seed=9)
    assert cache.get_seq_length() == PROMPT + 7
    assert twin.get_seq_length() == PROMPT + 5
    again = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    feed(model, again, PROMPT)
    feed(model, again, 3, seed=1)
    assert torch.equal(feed(model, again, 4, seed=2), alone)


@pytest.mark.parametrize("amount", [-2, torch.tensor(-2), PROMPT + 3, torch.tensor(PROMPT + 3)])
def test_cropping_the_tail(model: Any, amount: Any):
    """By a negative number of tokens, or to a length as older transformers asks with a tensor."""
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    feed(model, cache, PROMPT)
    feed(model, cache, 3, seed=1)
    expected = copy.deepcopy(cache)
    feed(model, cache, 2, seed=5)
    cache.crop(amount)
    assert cache.get_seq_length() == PROMPT + 3
    assert torch.equal(feed(model, cache, 4, seed=2), feed(model, expected, 4, seed=2))


def test_cropping_into_the_prefix_raises(model: Any):
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    feed(model, cache, PROMPT)
    feed(model, cache, 2, seed=1)
    for amount in (-3, PROMPT - 1):
        with pytest.raises(UserError, match="only the 2 tokens since compression"):
            cache.crop(amount)
    cache.crop(-2)
    assert cache.get_seq_length() == PROMPT


def test_cropping_a_dense_cache_forgets_queries_too(model: Any):
    method = KeyedKeep()
    cache = RaggedCache(model.config, method, PROMPT)
    ids = random_ids(1, PROMPT, seed=0)
    with torch.no_grad():
        model(ids[:, :40], past_key_values=cache)
        model(random_ids(1, 6, seed=3), past_key_values=cache)
        cache.crop(-6)
        assert cache.get_seq_length() == 40
        model(ids[:, 40:], past_key_values=cache)
    plain = RaggedCache(model.config, method, PROMPT)
    with torch.no_grad():
        model(ids, past_key_values=plain)
    for a, b in zip(cache.lengths(), plain.lengths(), strict=True):
        assert torch.equal(a, b)


def test_a_prompt_is_not_chosen_from_by_queries_that_went_with_cropped_tokens(model: Any):
    cache = RaggedCache(model.config, KeyedKeep(), None)
    feed(model, cache, 46)
    cache.crop(-6)
    feed(model, cache, 4, seed=1)
    with pytest.raises(UserError, match=r"2 of the newest 12 queries.*are gone"):
        cache.compress()
    feed(model, cache, 2, seed=2)
    cache.compress()
    fresh = RaggedCache(model.config, KeyedKeep(), None)
    feed(model, fresh, 40)
    feed(model, fresh, 4, seed=1)
    feed(model, fresh, 2, seed=2)
    fresh.compress()
    assert all(map(torch.equal, cache.lengths(), fresh.lengths()))


def test_added_up_queries_are_not_cropped(model: Any):
    cache = RaggedCache(model.config, methods.create("h2o", budget=12), None)
    feed(model, cache, 46)
    with pytest.raises(UserError, match="queries have been added up"):
        cache.crop(-6)
    feed(model, cache, 1, seed=1)
    assert cache.get_seq_length() == 47


def test_batch_operations_reach_prefix_tail_and_padding(model: Any):
    mask = left_padding(3, PROMPT)
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    prefill.prefill(model, random_ids(3, PROMPT, seed=0), cache, mask)
    cache.batch_repeat_interleave(2)
    assert [lengths.shape for lengths in cache.lengths()] == [(6, 4)] * LAYERS
    cache.reorder_cache(torch.tensor([5, 4, 3, 2, 1, 0]))
    assert cache.layers[0].padding == [10, 10, 5, 5, 0, 0]
    cache.batch_select_indices(torch.tensor([0, 2]))
    single = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    prefill.prefill(model, random_ids(3, PROMPT, seed=0), single, mask)
    expected = [lengths[[2, 1]] for lengths in single.lengths()]
    for a, b in zip(cache.lengths(), expected, strict=True):
        assert torch.equal(a, b)


def test_reset_makes_a_cache_new(model: Any):
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    first = feed(model, cache, PROMPT)
    feed(model, cache, 1, seed=1)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert not cache.compressed
    assert torch.equal(feed(model, cache, PROMPT), first)
    assert cache.compressed


def test_compressing_by_hand(model: Any):
    cache = RaggedCache(model.config, RandomKeep(0.5), None)
    feed(model, cache, 30)
    feed(model, cache, 30, seed=1)
    assert not cache.compressed
    cache.compress()
    assert cache.compressed
    assert cache.kept_share() < 0.9


def test_a_model_with_another_attention_is_noticed_at_the_second_forward():
    model = with_attention("llama", "sdpa")
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    feed(model, cache, PROMPT)
    with pytest.raises(UserError, match="does not use catekv attention"):
        feed(model, cache, 1, seed=1)


def test_a_model_with_another_attention_is_noticed_after_loading_a_cache(
    model: Any, tmp_path: Path
):
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    feed(model, cache, PROMPT)
    cache.save(tmp_path)
    other = with_attention("llama", "sdpa")
    loaded = RaggedCache.load(tmp_path, other)
    feed(other, loaded, 1)
    with pytest.raises(UserError, match="does not use catekv attention"):
        feed(other, loaded, 1)


def test_attention_that_the_ragged_path_lacks_raises(model: Any):
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    with pytest.raises(UserError, match="position_bias"), torch.no_grad():
        model(random_ids(1, 4, seed=0), past_key_values=cache, position_bias=torch.ones(1))


def test_offloading_is_refused(model: Any):
    with pytest.raises(UserError, match="offload"):
        RaggedCache(model.config, RandomKeep(), PROMPT, offloading=True)
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    feed(model, cache, PROMPT)
    with pytest.raises(UserError, match="offload"):
        cache.offload(0)


@pytest.mark.parametrize("value", [0, -3, "sometimes"])
def test_impossible_boundaries_are_refused(model: Any, value: Any):
    with pytest.raises(UserError, match="prefill_tokens"):
        RaggedCache(model.config, RandomKeep(), value)


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.parametrize("kind", ["prompt_lookup_num_tokens", "assistant_model"])
def test_assisted_decoding_is_refused(model: Any, kind: str, prefill: bool):
    value = 3 if kind == "prompt_lookup_num_tokens" else tiny_model("llama", "sdpa", seed=1)
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    ids = random_ids(1, PROMPT + 1, seed=0)
    if prefill:
        with torch.no_grad():
            model(ids[:, :-1], past_key_values=cache)
    with pytest.raises(UserError, match="assisted"):
        model.generate(ids, past_key_values=cache, max_new_tokens=5, **{kind: value})


class PairMerge(Method):
    """Replaces two equal neighbours by one entry that counts twice."""

    name = "pair_merge"

    def select_observed(self, observed: Observed) -> Selection:
        rows = []
        for b in range(observed.keys.shape[0]):
            rows.append(
                [
                    Merged(
                        observed.keys[b, h, ::2],
                        observed.values[b, h, ::2],
                        torch.full((observed.keys[b, h, ::2].shape[0],), 2.0).log(),
                    )
                    for h in range(observed.keys.shape[1])
                ]
            )
        return MergedSelection(merged=rows)


def test_merged_entries_are_attended_to_with_their_bias(model: Any):
    """Every context entry stored twice by hand, against one entry that counts twice."""
    merged = RaggedCache(model.config, PairMerge(), PROMPT)
    doubled = RaggedCache(model.config, KeepEverything(), PROMPT)
    for cache in (merged, doubled):
        for layer in cache.ragged_layers:
            generator = torch.Generator().manual_seed(layer.index)
            keys = torch.randn(1, 4, PROMPT // 2, 8, generator=generator).repeat_interleave(2, 2)
            values = torch.randn(1, 4, PROMPT // 2, 8, generator=generator).repeat_interleave(2, 2)
            layer.update(keys, values)
            layer.observe(torch.zeros(1, 8, PROMPT, 8), None, 8**-0.5)
    assert merged.layers[0].prefix.slots == doubled.layers[0].prefix.slots // 2
    difference = feed(model, merged, 3) - feed(model, doubled, 3)
    assert float(difference.abs().max()) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_saved_cache_continues_where_it_was(family: str, tmp_path: Path):
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    prefill.prefill(model, random_ids(3, PROMPT, seed=0), cache, left_padding(3, PROMPT))
    feed(model, cache, 2, seed=5, batch=3)
    cache.save(tmp_path / "cache")
    loaded = RaggedCache.load(tmp_path / "cache", model)
    assert loaded.get_seq_length() == PROMPT + 2
    assert loaded.kept_share() == cache.kept_share()
    assert loaded.full_bytes() == cache.full_bytes()
    for a, b in zip(loaded.lengths(), cache.lengths(), strict=True):
        assert torch.equal(a, b)
    expected = feed(model, cache, 4, seed=2, batch=3)
    assert torch.equal(feed(model, loaded, 4, seed=2, batch=3), expected)
    described = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert described["method"]["name"] == "random_keep"


def test_a_dense_cache_is_not_saved(model: Any, tmp_path: Path):
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    feed(model, cache, 10)
    with pytest.raises(UserError, match="only a compressed cache"):
        cache.save(tmp_path)


def test_loading_says_what_is_wrong(model: Any, tmp_path: Path):
    with pytest.raises(UserError, match="no saved cache"):
        RaggedCache.load(tmp_path / "nowhere", model)
    cache = RaggedCache(model.config, RandomKeep(), PROMPT)
    feed(model, cache, PROMPT)
    cache.save(tmp_path)
    with pytest.raises(UserError, match="another model"):
        RaggedCache.load(tmp_path, with_attention("yi", "catekv"))
    tensors = tmp_path / "cache.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(UserError, match="no saved cache"):
        RaggedCache.load(tmp_path, model)
    described = json.loads((tmp_path / "cache.json").read_text())
    cache.save(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        RaggedCache.load(tmp_path, model)
    (tmp_path / "cache.json").write_text('{"format": 1, "lay')
    with pytest.raises(UserError, match="no saved cache"):
        RaggedCache.load(tmp_path, model)


def test_heads_of_a_process():
    assert local_heads(8, 8, rank=1, world=2) == slice(0, 8)  # replicated
    assert local_heads(4, 8, rank=1, world=2) == slice(4, 8)
    with pytest.raises(UserError, match="replicated or split evenly"):
        local_heads(3, 8, rank=0, world=2)


class PerHead(RandomKeep):
    """Remembers which heads it was narrowed to."""

    name = "per_head"
    narrowed: list = []  # noqa: RUF012

    def for_heads(self, heads: slice) -> Method:
        PerHead.narrowed.append(heads)
        return self


def test_a_process_with_some_heads_gets_its_part_of_the_method(monkeypatch: pytest.MonkeyPatch):
    model = with_attention("llama", "catekv")
    cache = RaggedCache(model.config, PerHead(), PROMPT)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    layer = cache.layers[0]
    layer.update(torch.randn(1, 2, PROMPT, 8), torch.randn(1, 2, PROMPT, 8))
    layer.observe(torch.randn(1, 4, PROMPT, 8), None, 1.0)
    assert PerHead.narrowed == [slice(2, 4)]


def test_catekv_narrows_its_mask_to_the_heads_of_a_process():
    mask = HeadMask.random((3, 4), 0.5, seed=0)
    method = methods.create("catekv", head_mask=mask)
    part = method.for_heads(slice(2, 4))
    assert torch.equal(part.mask.adaptive, mask.adaptive[:, 2:4])
    assert part.budget == method.budget


def test_other_caches_do_not_interfere(model: Any):
    """Two caches of one model at a time, one of them ordinary."""
    ragged = RaggedCache(model.config, KeepEverything(), PROMPT)
    plain = DynamicCache(config=model.config)
    for tokens, seed in ((PROMPT, 0), (1, 1), (1, 2)):
        assert torch.equal(
            feed(model, ragged, tokens, seed=seed), feed(model, plain, tokens, seed=seed)
        )
    assert CateKVModel(model).shape.kv_heads == 4
