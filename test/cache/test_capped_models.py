"""Models whose attention logits are capped or that have sinks: nothing but the kept tokens differs.

Stock transformers computes them with eager attention only, which is therefore what the results are
compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import masked_reference
import pytest
import torch
from logit_models import LOGIT_MODELS, logit_model
from scenarios import PROMPT, largest_difference, left_padding, random_ids, two_turns
from test_finite_budget import ReferenceCache
from tiny_models import KeepEverything, RandomKeep
from transformers import DynamicCache

from catekv import methods
from catekv.cache import attention
from catekv.cache.cache import RaggedCache
from catekv.decode.step import DecodeStep
from catekv.errors import UserError
from catekv.model import CateKVModel
from catekv.models.compat import set_attention
from catekv.prefill import layerwise

NAMES = list(LOGIT_MODELS)


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    attention.register_attention()
    masked_reference.register()
    masked_reference.KEEP.clear()
    yield
    masked_reference.KEEP.clear()


def with_base(name: str, base: str) -> Any:
    model = logit_model(name)
    set_attention(model, base)
    return model


def stock(name: str, batch: int) -> list:
    model = with_base(name, "eager")
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    return two_turns(model, DynamicCache(config=model.config), mask, batch)


@pytest.mark.parametrize("name", NAMES)
def test_one_prompt_is_bit_equal(name: str):
    expected = stock(name, 1)
    model = with_base(name, "catekv")
    cache = RaggedCache(model.config, KeepEverything(), PROMPT)
    assert largest_difference(two_turns(model, cache), expected) == 0.0
    assert cache.compressed


@pytest.mark.parametrize("base", ["catekv", "catekv_eager"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_padded_batches(name: str, batch: int, base: str):
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    expected = stock(name, batch)
    model = with_base(name, base)
    for chunk in (None, 17):
        cache = RaggedCache(model.config, KeepEverything(), PROMPT)
        ids = random_ids(batch, PROMPT, seed=0)
        first = layerwise.prefill(model, ids, cache, mask, chunk_size=chunk)
        actual = [first, *two_turns(model, cache, mask, batch, feed_prompt=False)]
        assert largest_difference(actual, expected) <= 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_queries(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "LOGIT_BYTES", 8 * PROMPT * 4 * 7)
    for batch in (1, 3):
        mask = left_padding(batch, PROMPT) if batch > 1 else None
        expected = stock(name, batch)
        model = with_base(name, "catekv")
        cache = RaggedCache(model.config, KeepEverything(), PROMPT)
        assert largest_difference(two_turns(model, cache, mask, batch), expected) <= 2e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_finite_budget_is_dense_attention_with_the_same_mask(name: str, batch: int):
    method = RandomKeep(0.5)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    model = with_base(name, masked_reference.NAME)
    expected = two_turns(model, ReferenceCache(model.config, method, mask), mask, batch)
    assert masked_reference.KEEP, "the reference hid nothing"
    model = with_base(name, "catekv")
    cache = RaggedCache(model.config, method, PROMPT)
    actual = two_turns(model, cache, mask, batch)
    assert cache.kept_share() < 0.9
    assert largest_difference(actual, expected) <= 1e-5


@pytest.mark.parametrize(("name", "without"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
def test_the_form_matters(name: str, without: str, monkeypatch: pytest.MonkeyPatch):
    """The comparisons above could not tell if these models made no use of it."""
    model = with_base(name, "catekv_eager")
    method = RandomKeep(0.5)
    expected = two_turns(model, RaggedCache(model.config, method, PROMPT))
    form = attention._form
    monkeypatch.setattr(attention, "_form", lambda options: form({**options, without: None}))
    cache = RaggedCache(model.config, method, PROMPT)
    assert largest_difference(two_turns(model, cache)[1:], expected[1:]) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_fixed_tails_equals_an_ordinary_one(name: str):
    # without sliding layers, which transformers keeps
    model = logit_model(name, sliding=False)
    set_attention(model, "catekv")
    results = []
    for fixed in (False, True):
        cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
        layerwise.prefill(model, random_ids(1, PROMPT, seed=0), cache, None)
        tokens = [random_ids(1, 1, seed=i) for i in range(4)]
        if fixed:
            step = DecodeStep(model, cache, 8)
            assert step.fixed
            results.append([step(token).clone() for token in tokens])
        else:
            with torch.no_grad():
                results.append(
                    [model(token, past_key_values=cache).logits[:, -1] for token in tokens]
                )
    assert largest_difference(*results) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_methods_follow_the_model_or_refuse(name: str):
    model = CateKVModel(with_base(name, "catekv"), KeepEverything())
    ids = random_ids(1, PROMPT, seed=0)
    for method in ("snapkv", "adakv", "streaming_llm"):
        context = model.prefill(ids, method=methods.create(method, budget=24))
        assert model.generate_ids([5, 6], context, 3, []).steps == 2
    refused = methods.create("keepkv", budget=24)
    with pytest.raises(UserError, match=r"without (a soft cap|attention sinks)"):
        model.prefill(ids, method=refused)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_what_methods_see_of_the_logits_is_the_model_s(name: str):
    """Column sums are the column sums of the attention that the model itself computes."""
    from catekv.methods.base import Needs

    ids = random_ids(1, PROMPT, seed=0)
    model = with_base(name, "eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True, use_cache=False).attentions
    model = with_base(name, "catekv")
    cache = RaggedCache(model.config, None, hold=Needs(window=8, column_sums=True))
    with torch.no_grad():
        model(ids, past_key_values=cache)
    for layer in cache.ragged_layers:
        observed, _ = layer.observed()
        expected = weights[layer.index].sum(dim=2)
        torch.testing.assert_close(observed.column_sums, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "reason"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
def test_dense_baselines_refuse_what_they_do_not_compute(name: str, reason: str):
    from catekv.evaluation.efficiency.dense import measured_attention
    from catekv.evaluation.efficiency.memory import NotComputedError

    wrapped = CateKVModel(with_base(name, "catekv"), KeepEverything())
    ids, refused = random_ids(1, 4, seed=0), pytest.raises(NotComputedError, match=reason)
    with measured_attention(wrapped), refused, torch.no_grad():
        wrapped.model(ids)
