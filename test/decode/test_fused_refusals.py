"""Models that have no fused step, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_decoders import small_decoder
from tiny_models import tiny_model
from torch import nn

from catekv import CateKVModel
from catekv.decode.fused import chosen_step, fused_step
from catekv.decode.step import DecodeStep
from catekv.errors import UserError
from catekv.loading import attach_attention


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma", "the gate of GemmaMLP is no SiLU"),
        ("gemma3", "has a part 'pre_feedforward_layernorm'"),
        ("mixtral", "MixtralSparseMoeBlock has"),
    ],
)
def test_other_parts(name: str, reason: str) -> None:
    assert reason in reason_of(tiny_model(name))


@pytest.mark.parametrize(
    ("name", "reason", "changes"),
    [
        ("cohere", "post_attention_layernorm of CohereDecoderLayer is missing", {}),  # parallel
        ("olmo", "is a OlmoLayerNorm, no RMSNorm with a weight", {}),
        ("olmo2", "has a part 'post_feedforward_layernorm'", {}),
        ("stablelm", "input_layernorm of StableLmDecoderLayer has a bias", {}),
        ("nemotron", "the gate of NemotronMLP is no SiLU", {}),
        ("gpt_oss", "has weights of its own (sinks)", {}),
        ("gpt2", "the layers of GPT2LMHeadModel are not in its part `model`", {}),
        ("smollm3", "the keys of its layer 3 are others", {}),  # it does not rotate them
        ("granite", "something happens between its embeddings and its first layer",
         {"embedding_multiplier": 3.0}),
        ("granite", "its layer 0 computes something else", {"residual_multiplier": 0.5}),
        ("granite", "something happens to its logits behind the head", {"logits_scaling": 2.0}),
        ("ministral3", "its layer 0 computes something else",  # queries grow with the position
         {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                              "original_max_position_embeddings": 128,
                              "llama_4_scaling_beta": 0.3}}),
    ],
)  # fmt: skip
def test_other_families(name: str, reason: str, changes: dict[str, Any]) -> None:
    model = small_decoder(name, **changes)
    attach_attention(model)
    assert reason in reason_of(model)


@pytest.mark.parametrize("name", ["cwm", "ernie4_5", "granite", "helium", "ministral", "seed_oss"])
def test_relatives_that_are_made_of_the_same_parts(name: str) -> None:
    model = small_decoder(name)
    attach_attention(model)
    assert not isinstance(fused_step(model), str)


def reason_of(model: Any) -> str:
    found = fused_step(model)
    assert isinstance(found, str), "it has one"
    # as it is said: half a sentence
    assert "\n" not in found
    assert not found.endswith(".")
    with pytest.raises(UserError, match=r"cannot be fused: .*; use fused_step='auto'"):
        chosen_step(model, "on")
    return found


def plus_one(model: Any) -> None:
    """As Gemma's norm: the weight is what is added to one."""
    norm = model.model.layers[1].input_layernorm
    kind = type(norm)

    class Other(kind):  # type: ignore[misc, valid-type]
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            plain = nn.functional.rms_norm(states, states.shape[-1:], eps=self.variance_epsilon)
            return plain * (1 + self.weight)

    norm.__class__ = Other


def quantised(model: Any) -> None:
    class Linear4bit(nn.Linear):
        pass

    model.model.layers[2].mlp.up_proj.__class__ = Linear4bit


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def parallel(model: Any) -> None:
    """Attention and MLP read the same states."""
    layer = model.model.layers[1]

    def forward(states: torch.Tensor, **options: Any) -> torch.Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(states), **options)
        return states + attended + layer.mlp(layer.post_attention_layernorm(states))

    layer.forward = forward


def capped(model: Any) -> None:
    head = model.lm_head
    forward = type(model).forward

    class Capped(type(model)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = forward(self, *arguments, **options)
            output.logits = 30 * (output.logits / 30).tanh()
            return output

    model.__class__ = Capped
    assert head is model.lm_head


def several_types(model: Any) -> None:
    model.model.layers[0].mlp.half()


def biased(model: Any) -> None:
    layer = model.model.layers[0].self_attn
    layer.q_proj.bias = nn.Parameter(torch.zeros(layer.q_proj.out_features))


def shared(model: Any) -> None:
    layers = model.model.layers
    layers[1].self_attn.q_proj = layers[0].self_attn.q_proj


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (plus_one, "computes something else than the RMSNorm of Llama"),
        (quantised, "up_proj of LlamaMLP is Linear4bit, no plain linear layer"),
        (hooked, "hooks are attached to LlamaMLP"),
        (parallel, "its layer 1 computes something else"),
        (capped, "something happens to its logits behind the head"),
        (several_types, "its weights are of several types"),
        (biased, "some projections of LlamaAttention have a bias, others none"),
        (shared, "layers share their weights"),
        (lambda model: model.train(), "the model is in training mode"),
        (lambda model: model.to("meta"), "its weights are not all on one device"),
    ],
)
def test_what_was_done_to_a_model(change: Callable[[Any], Any], reason: str) -> None:
    model = tiny_model("llama")
    change(model)
    assert reason in reason_of(model)


def test_adapters_are_refused_and_merged_ones_are_not() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    assert "adapters" in reason_of(adapted)
    assert not isinstance(fused_step(adapted.merge_and_unload()), str)


def test_a_verdict_is_found_anew_where_something_changed() -> None:
    model = tiny_model("llama")
    model.train()
    assert isinstance(fused_step(model), str)
    model.eval()
    step = fused_step(model)
    assert not isinstance(step, str)
    hook = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert "hooks" in reason_of(model)
    hook.remove()
    assert not isinstance(fused_step(model), str)


def test_it_is_not_tried_while_attention_is_replaced() -> None:
    model = tiny_model("llama", attention="eager")
    assert fused_step(model) == "it runs with attention 'eager' and not with catekv's"
    attach_attention(model)
    assert not isinstance(fused_step(model), str)


def test_the_option() -> None:
    model = tiny_model("gemma")
    with pytest.raises(UserError, match="unknown fused_step 'yes'; use auto, on, off"):
        CateKVModel(model, fused_step="yes")
    with pytest.raises(UserError, match="cannot be fused: the gate of GemmaMLP is no SiLU"):
        CateKVModel(model, fused_step="on")
    context = CateKVModel(tiny_model("llama")).prefill([[5, 6, 7]], method="full")
    with pytest.raises(UserError, match="unknown fused_step 'yes'"):
        DecodeStep(model, context.cache, 4, fused_step="yes")
    # on a CPU nothing is moved unless it is asked for
    other = tiny_model("llama")
    places = [parameter.data_ptr() for parameter in other.parameters()]
    for mode in ("auto", "off"):
        CateKVModel(other, fused_step=mode)
    assert [parameter.data_ptr() for parameter in other.parameters()] == places
    assert "the model is on cpu" in str(chosen_step(other, "auto"))
