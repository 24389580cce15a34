"""A context answers only with the weights, adapters and number format that read it."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import PROMPT, random_ids
from tiny_models import RandomKeep, tiny_model

from catekv.cache.cache import RaggedCache
from catekv.decode.context import stack
from catekv.errors import UserError
from catekv.model import CateKVModel
from catekv.models.weights_identity import WeightsIdentity

IDS = random_ids(1, PROMPT, seed=0)
OTHER = "other weights, another adapter or another quantisation"


def wrapped(family: str = "llama", seed: int = 0) -> CateKVModel:
    return CateKVModel(tiny_model(family, seed=seed), RandomKeep(0.5))


def test_contexts_of_other_models_are_refused_in_memory():
    context = wrapped("llama").prefill(IDS)
    for other, reason in ((wrapped("qwen3"), "another model"), (wrapped("llama", 1), OTHER)):
        with pytest.raises(UserError, match=reason):
            other.generate_ids([5], context, 2, [])
        with pytest.raises(UserError, match=reason):
            other._generate([5], context, 2, {"num_beams": 2})
    same = wrapped("llama")
    assert same.generate_ids([5], context, 2, []).tokens


def test_saved_contexts_are_refused_by_other_weights(tmp_path: Path):
    wrapped().prefill(IDS).save(tmp_path)
    assert wrapped().load_context(tmp_path).cache.weights is not None
    with pytest.raises(UserError, match=OTHER):
        wrapped(seed=1).load_context(tmp_path)
    half = CateKVModel(tiny_model("llama").to(torch.bfloat16), RandomKeep(0.5))
    with pytest.raises(UserError, match="read in float32, but this model runs in bfloat16"):
        half.load_context(tmp_path)


def test_a_context_in_memory_of_another_number_format_is_refused():
    context = wrapped().prefill(IDS)
    half = CateKVModel(tiny_model("llama").to(torch.bfloat16), RandomKeep(0.5))
    with pytest.raises(UserError, match="read in float32, but this model runs in bfloat16"):
        half.generate_ids([5], context, 2, [])


def test_old_contexts_load_with_a_warning(tmp_path: Path):
    model = wrapped()
    context = model.prefill(IDS)
    context.save(tmp_path)
    file = tmp_path / "cache.json"
    described = json.loads(file.read_text())
    del described["weights"]
    file.write_text(json.dumps(described))
    with pytest.warns(UserWarning, match="cannot be checked"):
        loaded = model.load_context(tmp_path)
    expected = model.generate_ids([5], context, 4, []).tokens
    assert model.generate_ids([5], loaded, 4, []).tokens == expected


def test_a_cache_that_a_caller_filled_can_record_its_model(tmp_path: Path):
    model = tiny_model("llama")
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    with torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
    cache.save(tmp_path, model=model)
    RaggedCache.load(tmp_path, model)
    RaggedCache.load(tmp_path, model.config)
    with pytest.raises(UserError, match=OTHER):
        RaggedCache.load(tmp_path, tiny_model("llama", seed=1))


def test_a_cache_is_not_saved_under_the_name_of_another_model(tmp_path: Path):
    cache = wrapped().prefill(IDS).cache
    for other, reason in (
        (tiny_model("llama", seed=1), OTHER),
        (tiny_model("yi"), "another model"),
    ):
        with pytest.raises(UserError, match=reason):
            cache.save(tmp_path, model=other)
    cache.save(tmp_path, model=tiny_model("llama"))


def test_saving_an_old_context_again_records_its_weights(tmp_path: Path):
    model = wrapped()
    context = model.prefill(IDS)
    context.cache.weights = None
    context.save(tmp_path / "old")
    with pytest.warns(UserWarning, match="save it again to record them"):
        model.load_context(tmp_path / "old").save(tmp_path / "new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_context(tmp_path / "new")
    with pytest.raises(UserError, match=OTHER):
        wrapped(seed=1).load_context(tmp_path / "new")


def test_batches_are_joined_of_one_model_only():
    first, other = wrapped(), wrapped(seed=1)
    with pytest.raises(UserError, match="same weights"):
        stack([first.prefill(IDS), other.prefill(IDS)])
    dense = first.observe(IDS)
    joined = stack([first.prefill(IDS), dense.compress(RandomKeep(0.3))])
    with pytest.raises(UserError, match=OTHER):
        other.generate_ids([[5], [5]], joined, 2, [])


def test_weights_that_change_in_place_or_are_replaced_are_noticed():
    model = tiny_model("llama")
    before = WeightsIdentity.of(model)
    assert WeightsIdentity.of(model) == before == WeightsIdentity.of(copy.deepcopy(model))
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.add_(1e-3)
    changed = WeightsIdentity.of(model)
    assert changed != before
    weight.data = weight.data.clone() + 1e-3
    assert WeightsIdentity.of(model) not in (before, changed)


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_offloaded_weights_are_read_where_they_lie(store: str, tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("llama")
    expected = WeightsIdentity.of(model).digest
    offloaded = copy.deepcopy(model)
    if store == "memory":
        accelerate.cpu_offload(offloaded, execution_device="cpu")
    else:
        accelerate.disk_offload(offloaded, tmp_path, execution_device="cpu")
    assert any(weight.is_meta for weight in offloaded.parameters())
    assert WeightsIdentity.of(offloaded).digest == expected


def test_weights_out_of_reach_count_by_their_shape():
    with torch.device("meta"):
        small, same = tiny_model("llama"), tiny_model("llama")
        wider = tiny_model("llama", intermediate_size=72)
    assert WeightsIdentity.of(small) == WeightsIdentity.of(same) != WeightsIdentity.of(wider)


def lora(names: tuple[str, ...]) -> Any:
    peft = pytest.importorskip("peft")
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    torch.manual_seed(3)
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**options), names[0])
    for name in names[1:]:
        model.add_adapter(name, peft.LoraConfig(**options))
    return model.eval()


def test_the_active_adapter_counts_and_no_other():
    base = WeightsIdentity.of(tiny_model("llama"))
    model = lora(("first",))
    first = WeightsIdentity.of(model)
    assert first != base
    model = lora(("first", "second"))
    assert WeightsIdentity.of(model) == first
    model.set_adapter("second")
    second = WeightsIdentity.of(model)
    assert second not in (first, base)
    with model.disable_adapter():
        assert WeightsIdentity.of(model) == base
    assert WeightsIdentity.of(model) == second
    model.merge_adapter()
    merged = WeightsIdentity.of(model)
    assert merged not in (first, second, base)
    with pytest.warns(UserWarning, match="already merged"):
        model = model.merge_and_unload()
    assert WeightsIdentity.of(model) == merged


def test_a_context_of_one_adapter_is_refused_by_another():
    peft_model = lora(("first", "second"))
    model = CateKVModel(peft_model, RandomKeep(0.5))
    context = model.prefill(IDS)
    assert model.generate_ids([5], context, 2, []).tokens
    peft_model.set_adapter("second")
    with pytest.raises(UserError, match=OTHER):
        model.generate_ids([5], context, 2, [])
    peft_model.set_adapter("first")
    assert model.generate_ids([5], context, 2, []).tokens
