"""Every entry that takes a prompt, a mask or a generation configuration, against plain calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import PROMPT, random_ids, with_attention
from tiny_models import KeepEverything, RandomKeep, tiny_model
from transformers import BatchEncoding, GenerationConfig

from catekv import RaggedCache
from catekv.errors import UserError
from catekv.methods.base import Needs
from catekv.model import CateKVModel
from catekv.models.compat import context_window
from catekv.models.kinds import refuse_other_kinds, refuse_unless_causal
from catekv.prefill.sizes import sizes_of_config
from catekv.tasks.wording.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def speaking() -> CateKVModel:
    """A model with a tokenizer of its size, which keeps everything."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}the{% endif %}"
    )
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=None)
    return CateKVModel(model, KeepEverything(), tokenizer)


def padded(*rows: list[int]) -> dict[str, Any]:
    width = max(map(len, rows))
    return {
        "input_ids": [[0] * (width - len(row)) + row for row in rows],
        "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in rows],
    }


def test_mappings_reach_every_entry():
    model = CateKVModel(with_attention("llama", "catekv"), RandomKeep(0.5))
    prompts = [random_ids(1, n, seed=n)[0].tolist() for n in (40, 33)]
    questions = [[5, 6, 7], [8, 9, 10]]
    expected = model.generate_ids(questions, model.prefill(prompts), 5, []).rows
    batch = BatchEncoding(padded(*prompts), tensor_type="pt")
    given = {"input_ids": torch.tensor(questions)}
    assert model.generate_ids(given, model.prefill(batch), 5, []).rows == expected
    dense = model.observe(batch, needs=Needs(window=4))
    context = dense.compress(model.method)
    assert model.generate_ids(given, context, 5, []).rows == expected


def test_messages_and_texts_reach_every_entry(speaking: CateKVModel):
    tokenizer = speaking.tokenizer
    words = " ".join(tokenizer.convert_ids_to_tokens(range(20, 60)))
    messages = [{"role": "user", "content": words}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert speaking.prefill(messages).input_ids[0].tolist() == ids
    assert speaking.generate(messages, max_new_tokens=4) == speaking.generate(ids, max_new_tokens=4)
    assert speaking.generate(messages, max_new_tokens=4) == "".join(
        speaking.generate_stream(messages, max_new_tokens=4)
    )


BROKEN = {
    "on the right": [1] * 41 + [0] * 19,
    "between tokens": [1] * 20 + [0] * 5 + [1] * 35,
    "has no token": [0] * 60,
}


@pytest.mark.parametrize("reason", sorted(BROKEN))
def test_masks_that_are_no_left_padding_are_refused_everywhere(reason: str):
    model = CateKVModel(with_attention("llama", "catekv"), RandomKeep(0.5))
    ids = random_ids(2, PROMPT, seed=0)
    mask = torch.tensor([[1] * PROMPT, BROKEN[reason]])
    for read in (model.prefill, model.observe):
        with pytest.raises(UserError, match=f"row 1 .*{reason}"):
            read(ids, attention_mask=mask)
    context = model.prefill(random_ids(2, 30, seed=1))
    with pytest.raises(UserError, match=f"row 1 .*{reason}"):
        model.generate_ids({"input_ids": ids, "attention_mask": mask}, context, 3, [])
    for attention in ("catekv", "catekv_eager"):
        plain = with_attention("llama", attention)
        cache = RaggedCache(plain.config, RandomKeep(0.5), PROMPT)
        with pytest.raises(UserError, match=f"row 1 .*{reason}"):
            plain.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=3)


def test_options_of_transformers_need_a_token_of_every_question(speaking: CateKVModel):
    context = speaking.prefill([[20, 21, 22], [23, 24, 25]])
    with pytest.raises(UserError, match="at least one question token after every context"):
        speaking.generate([[5], []], context, 3, num_beams=2)


def stock_text(model: CateKVModel, ids: list[int], **options: Any) -> list[str]:
    whole = torch.tensor([ids])
    output = model.model.generate(whole, attention_mask=torch.ones_like(whole), **options)
    return model.tokenizer.batch_decode(output[:, len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 3},
        {"max_length": 24},
        {"max_new_tokens": 6, "num_beams": 3},
        {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
        {"max_new_tokens": 6, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 6, "do_sample": True, "temperature": 0.7, "num_return_sequences": 2},
    ],
)
def test_a_generation_configuration_does_what_it_says(speaking: CateKVModel, values: dict):
    ids, question = list(range(20, 35)), [40, 41, 42]
    context = speaking.prefill(ids)
    torch.manual_seed(3)
    expected = stock_text(speaking, [*ids, *question], **values)
    for shape in ({}, {"return_dict_in_generate": True}):
        config = GenerationConfig(**values, **shape)
        torch.manual_seed(3)
        answer = speaking.generate(question, context, generation_config=config)
        assert answer == (expected[0] if len(expected) == 1 else expected)
        assert config.max_new_tokens == values.get("max_new_tokens")


def test_arguments_win_over_the_configuration(speaking: CateKVModel):
    ids, question = list(range(20, 35)), [40, 41, 42]
    context = speaking.prefill(ids)
    expected = stock_text(speaking, [*ids, *question], max_new_tokens=4, num_beams=2)
    config = GenerationConfig(max_new_tokens=9, num_beams=3, temperature=0.5)
    answer = speaking.generate(
        question, context, 4, generation_config=config, num_beams=2, num_return_sequences=1
    )
    assert [answer] == expected
    assert speaking.generate(question, context, 5, generation_config=None) == speaking.generate(
        question, context, 5
    )


def test_an_end_token_of_the_configuration_ends_the_answer(speaking: CateKVModel):
    ids, question = list(range(20, 35)), [40, 41, 42]
    context = speaking.prefill([ids, ids[::-1]])
    tokens = speaking.generate_ids([question] * 2, context, 8, []).rows
    end = tokens[0][2]
    config = GenerationConfig(max_new_tokens=8, eos_token_id=end, pad_token_id=end)
    answers = speaking.generate([question] * 2, context, generation_config=config)
    cut = [row[: row.index(end) + 1] if end in row else row for row in tokens]
    assert answers == [speaking.tokenizer.decode(row, skip_special_tokens=True) for row in cut]


def test_drawing_with_an_argument_beside_options(speaking: CateKVModel):
    ids, question = list(range(20, 35)), [40, 41, 42]
    context = speaking.prefill(ids)
    torch.manual_seed(3)
    drawn = speaking.generate(question, context, 6, temperature=3.0, repetition_penalty=1.1)
    torch.manual_seed(3)
    expected = stock_text(
        speaking,
        [*ids, *question],
        max_new_tokens=6,
        do_sample=True,
        temperature=3.0,
        repetition_penalty=1.1,
    )
    assert [drawn] == expected
    with pytest.raises(UserError, match="do_sample=False does not"):
        speaking.generate(question, context, 6, temperature=3.0, do_sample=False)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt_lookup_num_tokens": 2}, "rolled back"),
        ({"output_scores": True, "return_dict_in_generate": True}, "answer that is text"),
        ({"cache_implementation": "static"}, "which is the cache"),
        ({"use_cache": False}, "which is the cache"),
        ({"token_healing": True}, "token_healing would"),
        ({"max_length": 5}, "max_length 5 leaves no room after 18 tokens"),
        ({"max_new_tokens": 500}, "context window"),
    ],
)
def test_what_a_configuration_cannot_have_is_refused(
    speaking: CateKVModel, values: dict, reason: str
):
    context = speaking.prefill(list(range(20, 35)))
    with pytest.raises(UserError, match=reason):
        speaking.generate([40, 41, 42], context, generation_config=GenerationConfig(**values))


def test_what_is_no_configuration_is_refused(speaking: CateKVModel):
    context = speaking.prefill(list(range(20, 35)))
    with pytest.raises(UserError, match="generation_config is a dict"):
        speaking.generate([40], context, generation_config={"max_new_tokens": 3})
    config = GenerationConfig(max_new_tokens=3)
    for options in ({}, {"generation_config": config}):
        with pytest.raises(UserError, match="refuses these options: Greedy methods") as refused:
            speaking.generate([40, 41], context, num_return_sequences=2, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="at least two tokens"):
        speaking.generate([40], num_beams=2)


SCALED = [
    ("qwen2", {"rope_parameters": {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}})
    for kind in ("yarn", "linear", "dynamic")
]
SCALED += [
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
    (
        "phi3-long",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 1.5, 2.0, 4.0],
            },
        },
    ),
]


@pytest.mark.parametrize(("family", "changes"), SCALED)
def test_scaled_rotary_positions_reach_original_length_times_factor(
    family: str, changes: dict[str, Any]
):
    def build() -> Any:
        return tiny_model(family, "sdpa", max_position_embeddings=64, **changes)

    ids, question = random_ids(1, 200, seed=0), torch.tensor([[5]])
    model = CateKVModel(build(), KeepEverything())
    answer = model.generate_ids(question, model.prefill(ids), 6, []).tokens
    expected = build().generate(torch.cat([ids, question], dim=1), max_new_tokens=6)
    assert answer == expected[0, 201:].tolist()
    with pytest.raises(UserError, match="context window of 256"):
        model.prefill(random_ids(1, 257, seed=0))


def llama3(positions: int, **values: Any) -> dict[str, Any]:
    shape = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0}
    return {
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, **shape, **values},
    }


@pytest.mark.parametrize(
    ("kind", "changes", "window"),
    [
        ("llama", {"max_position_embeddings": 64}, 64),
        # the factor of Llama 3.2 is larger than the ratio of its lengths
        ("llama", llama3(128, original_max_position_embeddings=32), 128),
        ("llama", llama3(64), 512),
        (
            "qwen2",
            {
                "max_position_embeddings": 80,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 10000.0,
                    "original_max_position_embeddings": 64,
                },
            },
            256,
        ),
        (
            "gemma3_text",
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            64,
        ),
    ],
)
def test_windows_of_every_spelling(kind: str, changes: dict[str, Any], window: int):
    from transformers import AutoConfig

    assert context_window(AutoConfig.for_model(kind, **changes)) == window


def test_windows_of_configurations_in_the_old_spelling_only():
    from types import SimpleNamespace

    config = SimpleNamespace(
        max_position_embeddings=64, rope_scaling={"type": "yarn", "factor": 2.0}
    )
    config.get_text_config = lambda decoder=False: config
    assert context_window(config) == 128


def adapter(kind: str) -> Any:
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    common = {"task_type": "CAUSAL_LM"}
    weights = {**common, "target_modules": ["q_proj", "v_proj"]}
    virtual = {**common, "num_virtual_tokens": 4}
    return {
        "lora": lambda: peft.LoraConfig(**weights, r=4, init_lora_weights=False),
        "ia3": lambda: peft.IA3Config(
            **weights, feedforward_modules=["v_proj"], init_ia3_weights=False
        ),
        "prompt": lambda: peft.PromptTuningConfig(**virtual),
        "prefix": lambda: peft.PrefixTuningConfig(**virtual),
        "p-tuning": lambda: peft.PromptEncoderConfig(**virtual),
        "activated": lambda: peft.LoraConfig(
            **weights, init_lora_weights=False, alora_invocation_tokens=[5, 6]
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_adapters_of_weights_are_right(kind: str):
    configured = adapter(kind)
    import peft

    model = peft.get_peft_model(tiny_model("llama"), configured).eval()
    ids, question = random_ids(1, 40, seed=0), torch.tensor([[5, 6, 7]])
    whole = CateKVModel(model, KeepEverything())
    answer = whole.generate_ids(question, whole.prefill(ids), 5, []).tokens
    model.set_attn_implementation("sdpa")
    expected = model.generate(input_ids=torch.cat([ids, question], dim=1), max_new_tokens=5)
    assert answer == expected[0, 43:].tolist()


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p-tuning", "activated"])
def test_adapters_that_are_more_than_weights_are_refused(kind: str):
    configured = adapter(kind)
    import peft

    model = peft.get_peft_model(tiny_model("llama"), configured).eval()
    with pytest.raises(UserError, match="the active adapter 'default'"):
        CateKVModel(model, KeepEverything())


def test_an_adapter_of_virtual_tokens_that_is_switched_on_later_is_refused():
    class Learned:
        is_prompt_learning = True
        peft_type = "PROMPT_TUNING"

    model = CateKVModel(tiny_model("llama"), KeepEverything())
    context = model.prefill([5, 6, 7])
    model.model.peft_config = {"soft": Learned()}
    model.model.active_adapters = ["soft"]
    for request in (
        lambda: model.prefill([5, 6]),
        lambda: model.observe([5, 6]),
        lambda: model.generate_ids([5], context, 2),
    ):
        with pytest.raises(UserError, match=r"'soft' \(PROMPT_TUNING\) puts virtual tokens"):
            request()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("a/path", "'a/path' is no transformers model"),
        (None, "None is no transformers model"),
        (torch.nn.Linear(2, 2), "a Linear is no transformers model"),
        (torch.nn.DataParallel(torch.nn.Linear(2, 2)), "DataParallel wraps a model"),
    ],
)
def test_what_is_no_model_is_refused(wrong: Any, reason: str):
    with pytest.raises(UserError, match=reason):
        CateKVModel(wrong)


def test_wrappers_for_training_are_refused(tmp_path: Path):
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    with pytest.raises(UserError, match=r"pass the model inside of it \(.module, a LlamaFor"):
        CateKVModel(torch.nn.DataParallel(tiny_model("llama")))
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        with pytest.raises(UserError, match="DistributedDataParallel wraps a model"):
            CateKVModel(DistributedDataParallel(tiny_model("llama")))
    finally:
        distributed.destroy_process_group()


SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "hidden_dim": 32,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "intermediate_size": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "d_ff": 32,
    "d_kv": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BertLMHeadModel", "set is_decoder=True"),
        ("RobertaForCausalLM", "set is_decoder=True"),
        ("ElectraForCausalLM", "set is_decoder=True"),
        ("RoFormerForCausalLM", "set is_decoder=True"),
        ("BertForMaskedLM", "as an encoder"),
        ("DistilBertForMaskedLM", "as an encoder"),
        ("ModernBertForMaskedLM", "as an encoder"),
        ("T5ForConditionalGeneration", "an encoder and a decoder"),
        ("BartForConditionalGeneration", "an encoder and a decoder"),
        ("T5EncoderModel", "no language-modelling head"),
        ("LlamaModel", "no language-modelling head"),
        ("LlamaForSequenceClassification", "no language-modelling head"),
    ],
)
def test_encoders_and_models_without_a_head_are_refused(name: str, reason: str):
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    with pytest.raises(UserError, match=reason):
        CateKVModel(kind(kind.config_class(**SMALL)).eval())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BertConfig", "set is_decoder=True"),
        ("ElectraConfig", "set is_decoder=True"),
        ("T5Config", r"^t5 is no causal .*AutoModelForCausalLM\.\); pass one$"),
    ],
)
def test_encoders_are_refused_by_their_configuration_too(name: str, reason: str):
    import transformers

    with pytest.raises(UserError, match=reason):
        sizes_of_config(getattr(transformers, name)(**SMALL))


def test_a_decoder_of_an_encoder_family_is_no_encoder():
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(**SMALL, is_decoder=True)
    model = BertLMHeadModel(config).eval()
    refuse_other_kinds(model)
    refuse_unless_causal(model)
    assert sizes_of_config(config).layers == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: CateKVModel(model.model, 3), "3 is no method"),
        (lambda model: CateKVModel(model.model, "snapkw"), "unknown method 'snapkw'"),
        (lambda model: model.prefill([[5, 6]], method=3), "3 is no method"),
        (lambda model: model.prefill([[5, 6]], torch.ones(1, 2)), "chunk_size must be a whole"),
        (lambda model: model.prefill([[5, 6]], chunk_size="8"), "chunk_size must be a whole"),
        (lambda model: model.prefill([[5, 6]], 0), "chunk_size must be a whole"),
        (lambda model: answered(model, 2.5), "max_new_tokens 2.5 must be a whole number"),
        (lambda model: answered(model, 0), "max_new_tokens 0 must be"),
        (lambda model: answered(model, 3, ["x"]), "not 'x'; pass strings as stop="),
        (lambda model: answered(model, 3, min_new_tokens=-1), "min_new_tokens -1 must be"),
    ],
)
def test_arguments_of_the_wrong_kind(call: Any, message: str):
    model = CateKVModel(tiny_model("llama"), "full")
    assert answered(model, 3)
    with pytest.raises(UserError, match=message) as refused:
        call(model)
    assert "\n" not in str(refused.value)


def answered(model: CateKVModel, *limits: Any, **more: Any) -> list[list[int]]:
    return model.generate_ids([[5]], model.prefill([[5, 6]]), *limits, **more).rows
