"""Prompts of every form become ids and a left-padded mask; what is no prompt is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ruler_tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from catekv.decode.prompts import PromptReader
from catekv.errors import UserError
from catekv.tasks.core.token_ids import beginning_ids, continuing_ids, end_of_ids, leading_ids

READER = PromptReader(vocabulary=50)
MESSAGES = [{"role": "user", "content": "The harbour is quiet."}]


def rows(prompt: Any, reader: PromptReader = READER, **options: Any) -> list[list[int]]:
    """Ids of each row without its padding."""
    ids, mask = reader.read(prompt, **options)
    if mask is None:
        return ids.tolist()
    return [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    "one",
    [
        [3, 4, 5],
        (3, 4, 5),
        range(3, 6),
        torch.tensor([3, 4, 5]),
        torch.tensor([[3, 4, 5]], dtype=torch.int32),
        np.array([3, 4, 5]),
        np.array([[3, 4, 5]], dtype=np.uint8),
        [np.int64(3), 4, torch.tensor(5)],
        [np.array([3, 4, 5])],
        {"input_ids": [3, 4, 5]},
        {"input_ids": [[3, 4, 5]], "attention_mask": [[1, 1, 1]], "token_type_ids": [[0, 0, 0]]},
        {"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1]},
        {"input_ids": torch.tensor([3, 4, 5]), "attention_mask": None},
        BatchEncoding({"input_ids": np.array([[3, 4, 5]]), "attention_mask": np.ones((1, 3))}),
    ],
)
def test_one_prompt_of_ids_in_every_form(one: Any):
    assert rows(one) == [[3, 4, 5]]


@pytest.mark.parametrize(
    "several",
    [
        [[3, 4, 5], [6]],
        [torch.tensor([3, 4, 5]), np.array([6])],
        {"input_ids": [[3, 4, 5], [6]]},
        {"input_ids": [[3, 4, 5], [6]], "attention_mask": [[1, 1, 1], [1]]},
        {"input_ids": [[3, 4, 5], [0, 0, 6]], "attention_mask": [[1, 1, 1], [0, 0, 1]]},
        {
            "input_ids": torch.tensor([[3, 4, 5], [0, 0, 6]]),
            "attention_mask": torch.tensor([[True] * 3, [False, False, True]]),
        },
        {
            "input_ids": np.array([[3, 4, 5], [0, 0, 6]]),
            "attention_mask": np.array([[1, 1, 1], [0, 0, 1]]),
        },
    ],
)
def test_several_prompts_of_ids_are_padded_on_the_left(several: Any):
    ids, mask = READER.read(several)
    assert rows(several) == [[3, 4, 5], [6]]
    assert ids.dtype == torch.int64
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([3, 50], r"token id 50 is outside of the model's vocabulary \(0 to 49\)"),
        ([3, -1], "token id -1 is outside"),
        (torch.tensor([[3, 50]]), "token id 50"),
        ([[3], [10**30]], "larger than any vocabulary"),
        ([1.5, 2], "whole numbers, not 1.5"),
        ([True, False], "whole numbers, not True"),
        ([3, np.True_], "whole numbers"),
        (torch.tensor([1.0]), "not an array of torch.float32"),
        (torch.tensor([True]), "not an array of torch.bool"),
        (np.array([1.0]), "not an array of float64"),
        (np.array([[1, 2], [3]], dtype=object), "not an array of object"),
        (torch.ones(1, 1, 2, dtype=torch.long), "3 dimensions"),
        (torch.tensor(3), "0 dimensions"),
        ([[[3, 4]]], "list of list"),
        ([3, [4]], "list of int, list"),
        ([3, "text"], "list of int, str"),
        (None, "a NoneType is no prompt"),
        (3, "a int is no prompt"),
        (b"text", "a bytes is no prompt"),
        ({3, 4}, "a set is no prompt"),
        (iter([3]), "is no prompt"),
        ({"text": "x"}, "this one has text"),
        ({}, "this one has nothing"),
        ({"input_ids": "text"}, "input_ids hold a str"),
        ({"input_ids": [[3]], "pixel_values": [1]}, "pixel_values besides"),
        ({"input_ids": [3, 4], "attention_mask": [1]}, "does not fit ids"),
        ({"input_ids": [[3, 4], [5]], "attention_mask": [1, 1]}, "does not fit"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1, 2]]}, "other values than 0 and 1"),
        ({"input_ids": [[3, 4]], "attention_mask": [[0.0, -1e9]]}, "other values than 0 and 1"),
        ({"input_ids": [[3, 4]], "attention_mask": [["a", "b"]]}, "no array of 0 and 1"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1, 0]]}, "row 0 .* on the right"),
        ({"input_ids": [[3, 4, 5]], "attention_mask": [[1, 0, 1]]}, "between tokens"),
        (
            {"input_ids": [[3, 4], [5, 6]], "attention_mask": [[1, 1], [0, 0]]},
            "row 1 has no token",
        ),
        ("text", "without a tokenizer, which text needs"),
        (MESSAGES, "without a tokenizer, which chat messages need"),
    ],
)
def test_what_is_no_prompt_is_refused_in_a_sentence(wrong: Any, reason: str):
    with pytest.raises(UserError, match=reason) as refused:
        READER.read(wrong)
    assert "\n" not in str(refused.value)


def test_chat_messages_are_what_the_template_writes():
    tokenizer = ruler_tokenizers.chat()
    reader = PromptReader(tokenizer)
    expected = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    assert rows(MESSAGES, reader) == [expected]
    assert rows([MESSAGES, MESSAGES], reader) == [expected, expected]
    returned = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert rows(returned, reader) == [expected]
    # after a context the conversation does not begin anew
    assert rows(MESSAGES, reader, begin=False) == [expected[1:]]


ONCE = "{% if loop.first %}<s>{% if message.role != 'system' %}[system] kind{% endif %}{% endif %}"
EVERY_TURN = "{% if message.role == 'user' %}<s>{% endif %}"


@pytest.mark.parametrize("single", ["<s> $A </s>", "$A"])
@pytest.mark.parametrize(("start", "begun"), [(ONCE, ""), (EVERY_TURN, "<s>")])
def test_chat_messages_after_a_context_are_a_later_turn(single: str, start: str, begun: str):
    tokenizer = metaspace("never", single)
    tokenizer.chat_template = (
        "{% for message in messages %}"
        + start
        + "[{{ message.role }}]{{ message.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[answer]{% endif %}"
    )
    reader = PromptReader(tokenizer)
    turn = f"{begun}[user]The harbour is quiet.</s>[answer]"
    assert rows(MESSAGES, reader, begin=False) == rows(turn, reader, begin=False)
    rules = [{"role": "system", "content": "The rail"}, *MESSAGES]
    assert rows(rules, reader, begin=False)[0].count(1) == len(begun) // 3


def test_chat_messages_that_are_none():
    with pytest.raises(UserError, match="no chat template"):
        PromptReader(ruler_tokenizers.byte_level()).read(MESSAGES)
    reader = PromptReader(ruler_tokenizers.chat())
    with pytest.raises(UserError, match="this one has text"):
        reader.read([{"text": "x"}])
    with pytest.raises(UserError, match="more than text"):
        reader.read([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(UserError, match="is text, not 3"):
        reader.read([{"role": "user", "content": 3}])
    core = ruler_tokenizers.byte_level().backend_tokenizer
    strict = PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template="{{ raise_exception('roles must alternate') }}"
    )
    with pytest.raises(UserError, match="roles must alternate"):
        PromptReader(strict).read(MESSAGES)


WORDS = ["▁", "▁The", "The", "▁rail", "rail", "▁What", "What", "▁is", "is", ".", "▁."]


def metaspace(scheme: str, single: str = "<s> $A </s>") -> Any:
    """Pieces that carry their space; a post-processor that ends every text."""
    names = ["<unk>", "<s>", "</s>", *WORDS]
    core = Tokenizer(models.Unigram([(name, -1.0 - (name == "▁") * 9) for name in names], unk_id=0))
    if scheme == "legacy":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("scheme", ["always", "first", "never", "legacy"])
def test_a_context_begins_once_and_never_ends(scheme: str):
    tokenizer = metaspace(scheme)
    assert tokenizer("The rail")["input_ids"][-1] == tokenizer.eos_token_id
    plain = tokenizer.encode("The rail", add_special_tokens=False)
    assert leading_ids(tokenizer) == [1]
    assert rows("The rail", PromptReader(tokenizer)) == [[1, *plain]]
    begun = rows("<s>The rail", PromptReader(tokenizer))[0]
    assert begun.count(1) == 1
    assert begun[0] == 1


@pytest.mark.parametrize("scheme", ["always", "first", "never", "legacy"])
@pytest.mark.parametrize(
    ("context", "question"),
    [("The rail.", " What is The rail"), ("The rail ", "What is"), ("The rail.", "What is")],
)
def test_a_question_is_a_true_continuation(scheme: str, context: str, question: str):
    tokenizer = metaspace(scheme)
    begun = beginning_ids(tokenizer, context)
    whole = beginning_ids(tokenizer, context + question)
    if context.endswith(" "):
        # the space belongs to the next piece; what remains must not bring a second one
        assert continuing_ids(tokenizer, question, context)[0] == tokenizer.convert_tokens_to_ids(
            "What"
        )
        return
    assert begun + continuing_ids(tokenizer, question, context) == whole
    assert begun + continuing_ids(tokenizer, question, end_of_ids(tokenizer, begun)) == whole
    assert begun + rows(question, PromptReader(tokenizer), begin=False)[0] == whole


def test_an_unknown_word_does_not_swallow_the_question():
    tokenizer = ruler_tokenizers.word_level()
    assert continuing_ids(tokenizer, "harbour", "zzz") == tokenizer.encode(
        "harbour", add_special_tokens=False
    )


def test_prefixes_of_several_tokens_and_tokenizers_without_any():
    assert leading_ids(metaspace("never", "$A </s>")) == []
    double = metaspace("never", "<s> <s> $A")
    assert leading_ids(double) == [1, 1]
    assert beginning_ids(double, "<s><s>The") == beginning_ids(double, "The")
