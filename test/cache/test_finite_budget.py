"""A finite budget is dense attention with the same mask per head, to 1e-5, tokens included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import masked_reference
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
from tiny_models import LAYERS, RandomKeep
from torch import Tensor
from transformers import DynamicCache

from catekv.cache.cache import RaggedCache
from catekv.model import CateKVModel

TOLERANCE = 1e-5
#: phi3-long, whose sliding window spans everything, is a DynamicSlidingWindowLayer in the reference
SELECTED = ["llama", "yi", "llama3.1", "phi3", "qwen2", "qwen3", "mistral", "glm4", "gemma",
            "gemma3", "mixtral"]  # fmt: skip


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    masked_reference.register()
    masked_reference.KEEP.clear()
    yield
    masked_reference.KEEP.clear()


class ReferenceCache(DynamicCache):
    """Decides what is hidden once the context was read."""

    def __init__(self, config: Any, method: Any, mask: Tensor | None):
        super().__init__(config=config)
        self.method, self.mask = method, mask
        masked_reference.KEEP.clear()

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *arguments: Any, **options: Any):
        if self.layers[-1].get_seq_length() == PROMPT and not masked_reference.KEEP:
            masked_reference.decide(self.method, self, self.mask, LAYERS)
        return super().update(keys, values, layer_idx, *arguments, **options)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", SELECTED)
def test_two_turns_equal_dense_attention_with_the_same_mask(family: str, batch: int):
    method = RandomKeep(0.5)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    model = with_attention(family, masked_reference.NAME)
    expected = two_turns(model, ReferenceCache(model.config, method, mask), mask, batch)
    assert masked_reference.KEEP, "the reference hid nothing"
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, method, PROMPT)
    actual = two_turns(model, cache, mask, batch)
    assert cache.kept_share() < 0.9
    assert largest_difference(actual, expected) <= TOLERANCE
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.argmax(-1), b.argmax(-1))


def test_a_budget_changes_the_logits():
    """The comparison above could not tell if the mask did nothing at all."""
    model = with_attention("llama", "catekv")
    full = two_turns(model, DynamicCache(config=model.config))
    kept = two_turns(model, RaggedCache(model.config, RandomKeep(0.5), PROMPT))
    assert largest_difference(kept[1:], full[1:]) > 1e-2


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3", "glm4", "gemma3"])
def test_beam_search_equals_the_masked_reference(family: str, prompts: int):
    beams, method = 3, RandomKeep(0.5)
    ids = random_ids(prompts, PROMPT, seed=0)
    question = random_ids(prompts, 5, seed=1)
    whole = torch.cat([ids, question], dim=1)
    options = {
        "num_beams": beams, "max_new_tokens": 6, "do_sample": False,
        "attention_mask": torch.ones_like(whole),
    }  # fmt: skip
    model = with_attention(family, masked_reference.NAME)
    cache = ReferenceCache(model.config, method, None)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        masked_reference.decide(method, cache, None, LAYERS)
        cache.batch_repeat_interleave(beams)
        for index, keep in masked_reference.KEEP.items():
            masked_reference.KEEP[index] = keep.repeat_interleave(beams, dim=0)
        expected = model.generate(whole, past_key_values=cache, **options)
    masked_reference.KEEP.clear()
    model = with_attention(family, "catekv")
    cache = RaggedCache(model.config, method, PROMPT)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        stored = cache.layers[1].prefix.keys.data_ptr()
        cache.batch_repeat_interleave(beams)
        actual = model.generate(whole, past_key_values=cache, **options)
    assert torch.equal(actual, expected)
    assert cache.layers[1].prefix.keys.data_ptr() == stored, "beams copied the prefix"


def test_own_greedy_loop_equals_the_masked_reference():
    method, batch = RandomKeep(0.4), 3
    lengths = [PROMPT, PROMPT - 5, PROMPT - 10]
    rows = [random_ids(1, length, seed=i)[0].tolist() for i, length in enumerate(lengths)]
    questions = [random_ids(1, 4 + i, seed=9 + i)[0].tolist() for i in range(batch)]
    model = with_attention("llama", masked_reference.NAME)
    expected = []
    for row, question in zip(rows, questions, strict=True):
        # one by one and unpadded: what a batch must be equal to
        masked_reference.KEEP.clear()
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.tensor([row]), past_key_values=cache)
            masked_reference.decide(method, cache, None, LAYERS)
            answer = []
            ids = torch.tensor([question])
            for _ in range(8):
                ids = model(ids, past_key_values=cache).logits[:, -1].argmax(-1)[None]
                answer.append(int(ids))
        expected.append(answer)
    masked_reference.KEEP.clear()
    wrapped = CateKVModel(with_attention("llama", "catekv"), method)
    context = wrapped.prefill(rows, chunk_size=16)
    assert wrapped.generate_ids(questions, context, 8).rows == expected
    again = wrapped.generate_ids(questions, context, 8).rows
    assert again == expected, "generating consumed the context"
