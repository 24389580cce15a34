"""An infinite budget changes nothing: logits and tokens are those of the stock model.

Exactly (0.0) for one unpadded prompt on sdpa in float32; to 2e-5 where the arithmetic is grouped
differently (padding, chunks, eager).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import (
    PROMPT,
    largest_difference,
    left_padding,
    random_ids,
    two_turns,
    with_attention,
)
from tiny_models import FAMILIES, KeepEverything, tiny_model
from torch import Tensor
from transformers import DynamicCache

from catekv.cache.cache import RaggedCache
from catekv.prefill import layerwise

TOLERANCE = 2e-5


def stock(family: str, mask: Tensor | None = None, batch: int = 1, base: str = "sdpa") -> list:
    model = with_attention(family, base)
    return two_turns(model, DynamicCache(config=model.config), mask, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_prompt_is_bit_equal(family: str):
    expected = stock(family)
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, KeepEverything(), PROMPT)
    actual = two_turns(model, cache)
    assert cache.compressed
    assert largest_difference(actual, expected) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batch_over_two_turns(family: str):
    mask = left_padding(3, PROMPT)
    expected = stock(family, mask, 3)
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, KeepEverything(), PROMPT)
    actual = two_turns(model, cache, mask, 3)
    assert largest_difference(actual, expected) <= TOLERANCE
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.argmax(-1), b.argmax(-1))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_chunks(family: str, padded: bool):
    batch = 3 if padded else 1
    mask = left_padding(batch, PROMPT) if padded else None
    expected = stock(family, mask, batch)
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, KeepEverything(), PROMPT)
    ids = random_ids(batch, PROMPT, seed=0)
    first = layerwise.prefill(model, ids, cache, mask, chunk_size=17)
    assert layerwise.usable_chunk(model, PROMPT, 17) == 17, "this family fell back to one forward"
    assert cache.compressed
    actual = [first, *two_turns(model, cache, mask, batch, feed_prompt=False)]
    assert largest_difference(actual, expected) <= TOLERANCE


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}), ("phi3-long", {})],
)
def test_rotations_that_depend_on_the_length_see_the_whole_prompt(
    family: str, changes: dict[str, Any], padded: bool
):
    """Rotary tables are made per chunk; the first chunk alone would get those of a short prompt."""
    batch = 3 if padded else 1
    mask = left_padding(batch, PROMPT) if padded else None
    ids = random_ids(batch, PROMPT, seed=0)
    results = []
    for chunk in (None, 17):
        # these models remember the longest prompt that they have seen
        model = tiny_model(family, **changes)
        cache = RaggedCache(model.config, KeepEverything(), PROMPT)
        results.append([layerwise.prefill(model, ids, cache, mask, chunk_size=chunk)])
    assert largest_difference(*results) <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("padded", [False, True])
def test_eager_base(family: str, padded: bool):
    batch = 3 if padded else 1
    mask = left_padding(batch, PROMPT) if padded else None
    expected = stock(family, mask, batch, base="eager")
    model = with_attention(family, "catekv_eager")
    for chunk in (None, 17):
        cache = RaggedCache(model.config, KeepEverything(), PROMPT)
        ids = random_ids(batch, PROMPT, seed=0)
        first = layerwise.prefill(model, ids, cache, mask, chunk_size=chunk)
        actual = [first, *two_turns(model, cache, mask, batch, feed_prompt=False)]
        assert largest_difference(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_other_caches_pass_through_untouched(family: str):
    """The registered attention changes nothing for a model that uses an ordinary cache or none."""
    ids = random_ids(1, PROMPT, seed=0)
    expected = stock(family)
    model = with_attention(family, "sdpa")
    with torch.no_grad():
        bare = model(ids).logits
    model = with_attention(family, "catekv")
    actual = two_turns(model, DynamicCache(config=model.config))
    assert largest_difference(actual, expected) == 0.0
    with torch.no_grad():
        assert torch.equal(model(ids).logits, bare)


def test_a_boundary_inside_a_forward_puts_the_rest_into_the_tail():
    """Count mode: however the prompt is fed, the context ends at exactly ``prefill_tokens``."""
    expected = stock("llama")
    model = with_attention("llama", "catekv")
    cache = RaggedCache(model.config, KeepEverything(), PROMPT - 7)
    actual = two_turns(model, cache)
    assert {layer.prefix.slots for layer in cache.ragged_layers} == {4 * (PROMPT - 7)}
    assert largest_difference(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("prefill_tokens", [None, "auto", PROMPT, PROMPT - 7])
def test_generate_gives_the_same_tokens(prefill_tokens: Any):
    model = with_attention("llama", "sdpa")
    ids = random_ids(3, PROMPT, seed=0)
    mask = left_padding(3, PROMPT)
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, **options)
    model = with_attention("llama", "catekv")
    cache = RaggedCache(model.config, KeepEverything(), prefill_tokens)
    actual = model.generate(ids, past_key_values=cache, **options)
    assert cache.compressed
    assert torch.equal(actual, expected)
