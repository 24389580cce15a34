"""What loading finds out about a model: how it continues, what it hands to attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import random_ids
from tiny_models import BASE, KeepEverything, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, MllamaConfig, MllamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from catekv.cache.continuation import CHUNKS, SINGLE_TOKENS, feed
from catekv.errors import UserError
from catekv.model import CateKVModel

LAYERS = {"num_hidden_layers": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
DELTA = {
    **LAYERS, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
SLIDING = {
    **LAYERS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2
}  # fmt: skip
JAMBA = {
    **LAYERS, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2,
    "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False,
}  # fmt: skip
#: Kind, changes of its configuration, how it continues, the base that transformers gives it.
MODELS: list[tuple[str, dict[str, Any], str, str]] = [
    ("jamba", JAMBA, SINGLE_TOKENS, "sdpa"),
    (
        "zamba",
        {
            **LAYERS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
            "n_mamba_heads": 2, "use_mamba_kernels": False, "attention_head_dim": 16,
            "attention_hidden_size": 128,
        },
        SINGLE_TOKENS,
        "sdpa",
    ),
    ("bamba", {**LAYERS, **MAMBA, "attn_layer_indices": [1, 3]}, CHUNKS, "sdpa"),
    ("falcon_h1", {**MAMBA, "mamba_d_ssm": 128, "head_dim": 8}, CHUNKS, "sdpa"),
    ("lfm2", {**LAYERS, "layer_types": ["conv", "full_attention"] * 2}, CHUNKS, "sdpa"),
    ("qwen3_next", DELTA, CHUNKS, "sdpa"),
    ("gemma4_text", {
        **SLIDING, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 97,
    }, CHUNKS, "sdpa"),
    # sinks in the sliding layers
    ("mimo_v2_flash", {
        **SLIDING, "head_dim": 16, "n_routed_experts": 2, "num_experts_per_tok": 1,
    }, CHUNKS, "eager"),
    ("gemma2", {**LAYERS, "head_dim": 16, "sliding_window": 16,
                "attn_logit_softcapping": None}, CHUNKS, "eager"),
]  # fmt: skip


def random_weights(model: Any) -> Any:
    """Weights wide enough that a mistake shows in the logits; sinks that take part."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
            elif "sink" in name:
                parameter.normal_(1.0, 1.0)
            elif "gate" in name:
                parameter.fill_(0.7)
    return model.float().eval()


def random_model(kind: str, base: str | None = None, **changes: Any) -> Any:
    config = AutoConfig.for_model(kind, **{**BASE, **changes})
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=base)
    return random_weights(made)


def check_against_stock(model: Any) -> CateKVModel:
    """A context of 70 tokens and a question of 5 give the logits and tokens of the model alone."""
    ids = random_ids(2, 75, seed=1)
    everything = torch.ones_like(ids)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    answers = model.generate(ids, attention_mask=everything, **options)[:, 75:].tolist()
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, -5:]
    wrapped = CateKVModel(model, KeepEverything())
    context = wrapped.prefill(ids[:, :70])
    found = feed(wrapped.model, ids[:, 70:], context.cache.fork(), last=5)
    for row in range(2):
        assert float((found[row] - logits[row]).abs().max()) < 3e-5
    assert wrapped.generate_ids(ids[:, 70:], context, 4, []).rows == answers
    del options["max_new_tokens"]
    assert wrapped._generate(ids[:, 70:], context, 4, options) == answers
    return wrapped


@pytest.mark.parametrize(
    ("kind", "changes", "way", "base"), MODELS, ids=[entry[0] for entry in MODELS]
)
def test_a_question_of_several_tokens_equals_stock(
    kind: str, changes: dict[str, Any], way: str, base: str
):
    model = random_model(kind, base, **changes)
    assert model.config._attn_implementation == base
    assert check_against_stock(model).traits.continues_by == way


def test_text_alone_with_cross_attention_layers():
    text = {
        **BASE, "num_hidden_layers": 5, "cross_attention_layers": [1, 3],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    config = MllamaConfig(text_config=text).get_text_config()
    check_against_stock(random_weights(MllamaForCausalLM(config)))


def test_a_base_that_the_model_does_not_run_with_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = random_model("gemma2", "eager", head_dim=16, attn_logit_softcapping=None)
    # as releases since 5.21 say of it themselves
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    with pytest.raises(UserError, match="does not run with attention 'sdpa'"):
        CateKVModel(model, attention_base="sdpa")


def test_a_state_outside_of_the_cache_is_refused():
    """Recurrent Gemma keeps it in its modules: a second question would go on from the first."""
    model = random_model(
        "recurrent_gemma", lru_width=64, block_types=["recurrent", "attention"],
        attention_window_size=16, head_dim=8, **LAYERS,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="nothing"), pytest.raises(UserError, match="state of its"):
        CateKVModel(model)


def patched(monkeypatch: pytest.MonkeyPatch, change: Any) -> Any:
    """A Llama whose attention calls pass through ``change(interface, module, *tensors, **options)``
    on their way to the attention function."""
    from transformers.models.llama import modeling_llama

    functions = modeling_llama.ALL_ATTENTION_FUNCTIONS

    class Changed:
        def get_interface(self, name: str, default: Any) -> Any:
            interface = functions.get_interface(name, default)
            return lambda module, *tensors, **options: change(
                interface, module, *tensors, **options
            )

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Changed())
    return tiny_model("llama")


def test_attention_called_twice_per_update_is_refused(monkeypatch: pytest.MonkeyPatch):
    def twice(
        interface: Any, module: LlamaAttention, query: Any, key: Any, *rest: Any, **options: Any
    ):
        first, weights = interface(module, query, key, *rest, **options)
        return first - 0.5 * interface(module, query, 0.5 * key, *rest, **options)[0], weights

    with pytest.raises(UserError, match="more than once per cache update"):
        CateKVModel(patched(monkeypatch, twice))


def test_other_values_than_were_stored_are_refused(monkeypatch: pytest.MonkeyPatch):
    def doubled(
        interface: Any, module: LlamaAttention, q: Any, k: Any, v: Any, mask: Any, **options: Any
    ):
        return interface(module, q, k, 2 * v, mask, **options)

    with pytest.raises(UserError, match="other values than it gave"):
        CateKVModel(patched(monkeypatch, doubled))


def test_a_bias_in_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Nothing on one token, as ALiBi: more of them show it."""

    def biased(
        interface: Any, module: LlamaAttention, q: Any, k: Any, v: Any, mask: Any, **options: Any
    ):
        place = torch.arange(k.shape[2])
        distance = place - (k.shape[2] - q.shape[2] + torch.arange(q.shape[2]))[:, None]
        bias = (0.1 * distance).masked_fill(distance > 0, torch.finfo(q.dtype).min)
        return interface(module, q, k, v, bias[None, None], **options)

    with pytest.raises(UserError, match="adds a bias to its attention mask"):
        CateKVModel(patched(monkeypatch, biased))


def test_positions_that_ignore_what_was_stored_are_noticed(monkeypatch: pytest.MonkeyPatch):
    """A model that is right in one forward, but not behind a compressed cache."""
    original = LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **options: Any):
        cache = options.get("cache", options.get("past_key_values"))
        if getattr(cache, "compressed", False):
            options["position_ids"] = torch.arange(input_ids.shape[1])[None]
        return original(self, input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(UserError, match="computes other logits"):
        CateKVModel(tiny_model("llama"))


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_answers(place: str, tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model("llama", "sdpa")
    ids = random_ids(1, 75, seed=1)
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)[0, 75:].tolist()
    if place == "cpu":
        model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        model = accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    wrapped = CateKVModel(model, KeepEverything())
    assert wrapped.device.type == "cpu"
    context = wrapped.prefill(ids[:, :70], chunk_size=16)
    assert wrapped.generate_ids(ids[:, 70:], context, 4, []).tokens == expected
