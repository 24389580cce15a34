"""Loading: what is supported, how it is found out, and what wrong input is answered with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import random_ids
from tiny_checkpoint import save_tiny_checkpoint
from tiny_models import BASE, KeepEverything, RandomKeep, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
)

import catekv
from catekv import HeadMask, methods
from catekv.errors import UserError
from catekv.model import CateKVModel
from catekv.models import presets
from catekv.models.compat import context_window
from catekv.prefill import layerwise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def random_model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**BASE, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


# families beyond the supported list whose attention happens to fit: found by the probe alone
@pytest.mark.parametrize("kind", ["cohere", "olmo2", "granite"])
def test_any_model_that_passes_the_probe_works(kind: str):
    model = random_model(kind)
    wrapped = CateKVModel(model, KeepEverything())
    ids, question = random_ids(1, 40, seed=0), torch.tensor([[5, 6, 7]])
    answer = wrapped.generate_ids(question, wrapped.prefill(ids, chunk_size=16), 5, []).tokens
    model.set_attn_implementation("sdpa")
    expected = model.generate(
        torch.cat([ids, question], dim=1), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert answer == expected[0, -5:].tolist()


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4}, "computes attention in code of its own"),
        ("mamba", {}, "no attention layers"),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(
    kind: str, changes: dict[str, Any], reason: str
):
    with pytest.raises(UserError, match=reason):
        CateKVModel(random_model(kind, **changes))


def test_a_model_without_full_attention_passes_through_with_a_warning():
    model = tiny_model("mistral-window")
    with pytest.warns(UserWarning, match="nothing will be compressed"):
        wrapped = CateKVModel(model, RandomKeep())
    context = wrapped.prefill(random_ids(1, 50, seed=0))
    assert wrapped.generate_ids([5, 6], context, 3, []).steps == 2


def test_a_model_whose_layers_cannot_be_chunked_says_so_once_and_still_works():
    """GPT-2 flattens with the width of the whole prompt."""
    model = random_model("gpt2", n_embd=64, n_head=4, n_layer=2)
    wrapped = CateKVModel(model, KeepEverything())
    ids = random_ids(1, 40, seed=0)
    with pytest.warns(UserWarning, match="cannot be prefilled layer by layer"):
        chunked = wrapped.prefill(ids, chunk_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = wrapped.prefill(ids, chunk_size=8)
    whole = wrapped.prefill(ids, chunk_size=None)
    assert torch.equal(chunked.last_logits, whole.last_logits)
    assert torch.equal(again.last_logits, whole.last_logits)


def test_driving_layers_leaves_the_model_as_it_was():
    model = tiny_model("llama")
    wrapped = CateKVModel(model, RandomKeep())
    wrapped.prefill(random_ids(1, 40, seed=0), chunk_size=8)
    assert all("forward" not in vars(layer) for layer in model.model.layers)

    def broken(_: Any, *inputs: Any) -> None:
        raise RuntimeError("in the middle of a prompt")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        wrapped.prefill(random_ids(1, 40, seed=0), chunk_size=8)
    hook.remove()
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    ids = random_ids(1, 40, seed=0)
    with torch.no_grad():
        after = model(ids, past_key_values=DynamicCache(config=model.config)).logits[:, -1]
    assert float((after - wrapped.prefill(ids, chunk_size=8).last_logits).abs().max()) < 1e-5


def test_shape_is_what_the_layers_really_are():
    shape = CateKVModel(tiny_model("yi")).shape
    assert (shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim) == (3, 8, 1, 8)


def test_loading_a_checkpoint(checkpoint: Path):
    model = CateKVModel.from_pretrained(checkpoint, "streaming_llm", budget=32)
    assert model.method.to_dict()["budget"] == 32
    assert model.dtype == torch.float32
    assert model.tokenizer is not None
    assert model.model_id == str(checkpoint)


def test_options_reach_the_method_only_where_given(checkpoint: Path):
    assert CateKVModel.from_pretrained(checkpoint, "full").method == methods.create("full")
    with pytest.raises(UserError, match="no option 'ratio'"):
        CateKVModel.from_pretrained(checkpoint, "full", ratio=0.4)
    with pytest.raises(UserError, match="ready-made method"):
        CateKVModel.from_pretrained(checkpoint, KeepEverything(), budget=3)


def test_catekv_by_name_with_a_mask(checkpoint: Path):
    mask = HeadMask.random((2, 2), 0.5, seed=0)
    model = CateKVModel.from_pretrained(
        checkpoint, head_mask=mask, budget=64, init_tokens=8, recent_tokens=8
    )
    context = model.prefill([5] * 300)
    assert model.method.name == "catekv"
    longest = torch.stack([lengths[0] for lengths in context.lengths()])
    assert torch.equal(longest == 300, torch.as_tensor(mask.adaptive))


def test_a_mask_of_another_shape_is_refused(checkpoint: Path):
    with pytest.raises(UserError, match=r"3.*5|5.*3"):
        CateKVModel.from_pretrained(checkpoint, head_mask=HeadMask.random((3, 5), 0.5, seed=0))


def test_missing_and_foreign_checkpoints(checkpoint: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint folder"):
        CateKVModel.from_pretrained(tmp_path / "nowhere", "full")
    with pytest.raises(UserError, match=r"no config\.json"):
        CateKVModel.from_pretrained(tmp_path, "full")
    (tmp_path / "config.json").write_text("{ torn")
    with pytest.raises(UserError, match="no readable configuration"):
        CateKVModel.from_pretrained(tmp_path, "full")
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(UserError, match="cannot load"):
        CateKVModel.from_pretrained(tmp_path, "full")  # no weights


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(UserError, match="network"):
        CateKVModel.from_pretrained("someone/some-model", "full")


def test_devices_numbers_and_attention_are_checked(checkpoint: Path):
    with pytest.raises(UserError, match="unknown device"):
        CateKVModel.from_pretrained(checkpoint, "full", device="nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            CateKVModel.from_pretrained(checkpoint, "full", device="cuda")
    with pytest.raises(UserError, match="unknown dtype"):
        CateKVModel.from_pretrained(checkpoint, "full", dtype="float7")
    with pytest.raises(UserError, match="unknown attention"):
        CateKVModel.from_pretrained(checkpoint, "full", attention="magic")


@pytest.mark.parametrize(
    ("attention", "name"), [("eager", "catekv_eager"), ("sdpa", "catekv"), ("auto", "catekv")]
)
def test_the_base_attention_is_chosen(checkpoint: Path, attention: str, name: str):
    model = CateKVModel.from_pretrained(checkpoint, "full", attention=attention)
    assert model.config._attn_implementation == name
    assert model.prefill([3, 4, 5]).tokens == 3


def test_half_precision_runs(checkpoint: Path):
    model = CateKVModel.from_pretrained(checkpoint, "streaming_llm", budget=16, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    context = model.prefill([5, 6, 7, 8] * 20, chunk_size=16)
    assert context.kept_share() < 0.5
    assert len(model.generate_ids([9], context, 4, []).tokens) == 4


# parameter counts in the models' published configurations, in units of 10^9
SIZES = {
    "glm4-9b-1m": 9.484,
    "llama3-8b-1m": 8.030,
    "llama3.1-8b": 8.030,
    "phi3-mini-128k": 3.821,
    "phi4": 14.660,
    "qwen2.5-32b": 32.764,
    "qwen2.5-7b": 7.616,
    "yi-34b-200k": 34.389,
    "yi-9b-200k": 8.829,
}


def test_every_preset_has_a_known_size():
    assert sorted(SIZES) == presets.available()


@pytest.mark.parametrize("name", ["phi4", "qwen2.5-7b", "glm4-9b-1m"])
def test_presets_have_the_real_shapes(name: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(presets.preset_config(name))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(SIZES[name], abs=5e-4)


def test_random_weights_of_a_smaller_model():
    config = presets.preset_config(
        "Phi3-Mini-128K", layers=1, vocab_size=50, hidden_size=48, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=4, original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 6,
            "long_factor": [2.0] * 6, "original_max_position_embeddings": 16,
        },
    )  # fmt: skip
    model = CateKVModel.from_config(config, RandomKeep(0.5), dtype="float32")
    assert model.shape.layers == 1
    again = CateKVModel.from_config(config, RandomKeep(0.5), dtype="float32")
    ids = list(range(3, 43))
    assert torch.equal(model.prefill(ids).last_logits, again.prefill(ids).last_logits)
    with pytest.raises(UserError, match="no weights to load"):
        CateKVModel.from_config(config, random_weights=False)
    with pytest.raises(UserError, match="unknown model shape"):
        CateKVModel.from_config("llama9")


def test_registration_is_idempotent_and_not_done_by_importing():
    catekv.register_attention()
    catekv.register_attention()
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for base, name in catekv.cache.attention.NAMES.items():
        assert name in ALL_ATTENTION_FUNCTIONS.valid_keys()
        assert name in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
        assert ("flash" in name) == ("flash" in base)


def test_a_model_is_tried_past_its_window_only_by_longer_prompts():
    """Phi-3-mini-128k has a window of 262,144 tokens; a trial of that length would never end."""
    model = tiny_model("phi3", sliding_window=1 << 18, max_position_embeddings=1 << 17)
    assert layerwise.usable_chunk(model, 64, 16) == 16
    assert max(layerwise._verdicts[model]) < 64
    model = tiny_model("phi3", sliding_window=100, max_position_embeddings=1 << 17)
    for tokens in (64, 99, 101, 5000):
        assert layerwise.usable_chunk(model, tokens, 16) == 16
    assert sorted(layerwise._verdicts[model]) == [16, 116]


def test_layerwise_verdict_is_kept_per_model():
    model = tiny_model("llama")
    wrapped = CateKVModel(model, RandomKeep())
    assert model not in layerwise._verdicts
    wrapped.prefill(random_ids(1, 20, seed=0), chunk_size=8)
    assert list(layerwise._verdicts[model].values()) == [None]


@pytest.mark.parametrize("positions", [-1, 0.5, "many"])
def test_a_window_that_is_no_number_of_tokens(positions: Any):
    config = tiny_model("llama").config
    config.__dict__["max_position_embeddings"] = positions
    with pytest.raises(UserError, match="is no number of tokens; correct its config"):
        context_window(config)


@pytest.mark.parametrize("end", [float("inf"), "</s>", [2, None]])
def test_ends_of_answers_that_are_no_token_ids(end: Any):
    model = CateKVModel(tiny_model("llama"), "full")
    model.model.generation_config.__dict__["eos_token_id"] = end
    with pytest.raises(UserError, match="is no token id; correct its generation_config"):
        model.generate_ids([[5]], model.prefill([[5, 6]]), 2)


#: the decoder of models that read pictures too
TEXT = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
PICTURES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
WITH_PICTURES = {
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": None, **TEXT},
        "vision_config": {"model_type": "pixtral", "num_attention_heads": 2, **PICTURES},
        "image_token_index": 5,
    },
    "qwen3_vl": {
        "text_config": {
            **TEXT,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4,
            },
        },
        "vision_config": {
            "depth": 1, "num_heads": 2, "out_hidden_size": 64, "deepstack_visual_indexes": [],
            **PICTURES,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WITH_PICTURES)
def test_a_decoder_that_comes_with_eyes_only_reads_text(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **WITH_PICTURES[kind])
    torch.manual_seed(0)
    stock = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
    stock.save_pretrained(tmp_path)
    model = CateKVModel.from_pretrained(tmp_path, method="full", device="cpu")
    context = [list(range(10, 50)), list(range(60, 85))]
    question = [7, 9, 8]
    rows = model.generate_ids([question] * 2, model.prefill(context), 5, []).rows
    for ids, row in zip(context, rows, strict=True):
        whole = torch.tensor([[*ids, *question]])
        right = stock.generate(
            whole, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert row == right[0, whole.shape[1] :].tolist()
        assert len(set(row)) > 1
