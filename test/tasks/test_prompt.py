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
    template_name,
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


@pytest.mark.parametrize("make", [ruler_tokenizers.byte_level, ruler_tokenizers.chat])
def test_bos_inside_the_text_is_the_users_affair(make):
    tokenizer = make()
    made = sample(context="The <s> harbour.\n")
    ids = encode(made, tokenizer).ids
    assert ids.count(tokenizer.bos_token_id) == 2
    assert full_text(tokenizer, ids).count(made.context + made.question) == 1


@pytest.mark.parametrize("given", [{"context": "<s>The harbour.\n"},
                                   {"context": "", "question": "<s>The harbour."}])  # fmt: skip
def test_finished_prompt_that_begins_with_bos_does_not_get_another(given):
    tokenizer = ruler_tokenizers.byte_level()
    ids = encode(sample(**given), tokenizer).ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def with_template(template: str):
    core = ruler_tokenizers.byte_level().backend_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def test_nothing_is_added_to_what_the_tokenizers_own_template_writes():
    tokenizer = with_template("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}")
    made = sample(answer_prefix="")
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": made.context + made.question}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert encode(made, tokenizer).ids == expected
    assert tokenizer.bos_token_id not in expected
    named = encode(made, tokenizer, "<|user|>{prompt}").ids
    assert named == [tokenizer.bos_token_id, *expected]


def test_no_template_has_one_meaning_by_all_its_names():
    tokenizer = ruler_tokenizers.chat()
    plain = encode(sample(), ruler_tokenizers.byte_level()).ids
    for word in ("none", "NONE", "base", None, ""):
        assert encode(sample(), tokenizer, word).ids == plain
        assert template_name(word) == "base"
    assert template_name("auto") == "auto"


SYSTEM_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
)


def test_a_system_message_takes_its_place():
    own = prompt_format(with_template(SYSTEM_TEMPLATE), "auto", "Be brief. ")
    assert own.before == "<|system|>Be brief.<|end|><|user|>"
    named = prompt_format(ruler_tokenizers.byte_level(), "qwen", "Be brief.")
    assert named.before == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("template", ["phi3", "none", "Q: {prompt} A:"])
def test_a_system_message_without_a_place_is_refused(template):
    with pytest.raises(UserError, match="no place for a system message"):
        prompt_format(ruler_tokenizers.chat(), template, "Be brief.")


def test_a_system_message_that_the_template_drops_is_refused():
    tokenizer = with_template("<|user|>{{ messages[-1]['content'] }}")
    with pytest.raises(UserError, match="no place for a system message"):
        prompt_format(tokenizer, "auto", "Be brief.")


@pytest.mark.parametrize("template", [
    "{{ raise_exception('roles must alternate') }}", "{% for m in messages %}{{ m.absent.more }}",
    "{{ messages[0]['content'] + 1 }}{% endfor %}", "{{ 1 / 0 }}",
])  # fmt: skip
def test_a_template_that_fails_is_refused_with_its_reason(template):
    with pytest.raises(UserError, match=r"does not take these messages: .*; choose a"):
        encode(sample(), with_template(template))


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
    tokenizer = with_template(
        "{% for message in messages %}<s>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<s><|assistant|>{% endif %}"
    )
    ids = encode(sample(), tokenizer).ids
    assert ids.count(tokenizer.bos_token_id) == 2
    assert full_text(tokenizer, ids).startswith("<s>Some instruction.")
