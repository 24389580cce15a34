"""Prompts: BOS once, the context boundary, chat templates."""

from __future__ import annotations

import pytest
import ruler_tokenizers
from transformers import PreTrainedTokenizerFast

from catekv.errors import UserError
from catekv.tasks.core.prompt import (
    TEMPLATES,
    WITHOUT_TEMPLATE,
    encode,
    has_template,
    prompt_format,
)
from catekv.tasks.core.sample import Sample


def sample(**changes):
    values = {
        "task": "ruler/vt",
        "index": 0,
        "context": "Some instruction.\nThe harbour is quiet.\nA gull sits on the rail.\n",
        "question": "Question: What is on the rail?",
        "answer_prefix": " Answer: On the rail is",
        "outputs": ("gull",),
        "max_new_tokens": 30,
        "length": 0,
        "target_length": 0,
    }
    return Sample(**{**values, **changes})


def full_text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def test_plain_prompt_is_the_tokenised_text_with_bos_once():
    tokenizer = ruler_tokenizers.byte_level()
    prompt = encode(sample(), tokenizer)
    made = sample()
    text = made.context + made.question + made.answer_prefix
    assert prompt.ids == tokenizer(text)["input_ids"]
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    assert full_text(tokenizer, prompt.context_ids) == "<s>" + made.context


def test_chat_template_wraps_context_and_question_with_bos_once():
    tokenizer = ruler_tokenizers.chat()
    made = sample()
    prompt = encode(made, tokenizer)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": made.context + made.question}],
        tokenize=False,
        add_generation_prompt=True,
    )
    text += made.answer_prefix.lstrip()
    assert prompt.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    assert full_text(tokenizer, prompt.question_ids).startswith("Question:")


def test_context_ids_do_not_depend_on_the_question():
    for name, make in ruler_tokenizers.ALL.items():
        first = encode(sample(), make()).context_ids
        second = encode(sample(question="Question: Why?", answer_prefix=""), make()).context_ids
        assert first == second, name


def test_question_ids_continue_the_context_where_the_tokenizer_adds_a_space():
    tokenizer = ruler_tokenizers.sentencepiece_like()
    made = sample(context="The harbour is quiet. ")
    joined = tokenizer.encode(
        made.context + made.question + made.answer_prefix, add_special_tokens=False
    )
    assert encode(made, tokenizer).ids == joined


def test_tokenizer_that_never_adds_bos_gets_none():
    tokenizer = ruler_tokenizers.sentencepiece_like()
    assert tokenizer.bos_token_id not in encode(sample(), tokenizer).ids


def test_bos_written_by_the_text_too_is_refused():
    tokenizer = ruler_tokenizers.byte_level()
    with pytest.raises(UserError, match="BOS token 2 times"):
        encode(sample(context="<s>The <s> harbour.\n"), tokenizer)


def test_finished_prompt_that_begins_with_bos_does_not_get_another():
    tokenizer = ruler_tokenizers.byte_level()
    prompt = encode(sample(context="<s>The harbour.\n"), tokenizer)
    assert prompt.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_official_template_names_are_accepted(name):
    wrapped = prompt_format(ruler_tokenizers.byte_level(), name.upper())
    assert wrapped.before + "{prompt}" + wrapped.after == TEMPLATES[name]


def test_own_template_text_and_unknown_name():
    tokenizer = ruler_tokenizers.byte_level()
    assert prompt_format(tokenizer, "Q: {prompt} A:").after == " A:"
    with pytest.raises(UserError, match="unknown chat template 'llama-9'"):
        prompt_format(tokenizer, "llama-9")


def test_template_of_the_sample_is_used_unless_another_is_asked_for():
    tokenizer = ruler_tokenizers.chat()
    plain = sample(metadata={"chat_template": "base"})
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert user not in encode(plain, tokenizer).ids
    assert user in encode(plain, tokenizer, "phi3").ids


def test_a_sample_that_must_have_no_template_gets_none_whatever_is_asked_for():
    tokenizer = ruler_tokenizers.chat()
    plain = sample(metadata=WITHOUT_TEMPLATE)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    for asked in ("auto", "phi3", "base", None):
        assert user not in encode(plain, tokenizer, asked).ids


def test_unknown_boundary_leaves_one_token_as_question():
    tokenizer = ruler_tokenizers.byte_level()
    made = sample(question="", answer_prefix="", metadata={"query_aware_only": True})
    prompt = encode(made, tokenizer)
    assert len(prompt.question_ids) == 1
    assert prompt.ids == tokenizer(made.context)["input_ids"]


def test_traces_of_templates_are_found():
    assert has_template("<|begin_of_text|>text")
    assert has_template("text [/INST]")
    assert not has_template("What is a < b and |c|? Answer:")


def test_a_template_that_writes_bos_in_every_turn_is_right():
    core = ruler_tokenizers.byte_level().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}<s>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<s><|assistant|>{% endif %}",
    )
    made = sample()
    ids = encode(made, tokenizer).ids
    assert ids.count(tokenizer.bos_token_id) == 2
    assert full_text(tokenizer, ids).startswith("<s>Some instruction.")
    with pytest.raises(UserError, match="BOS token 2 times"):
        encode(sample(context="The <s> harbour.\n"), tokenizer)
