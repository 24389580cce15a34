"""Long prompts lose their middle; the question keeps its place, or the sample says it is lost."""

from __future__ import annotations

from random import Random

import pytest
from longbench_rows import choice_row, row, write_rows
from ruler_tokenizers import byte_level, chat, sentencepiece_like

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.drawing import chinese
from catekv.tasks.drawing.essay import essay
from catekv.tasks.rows.truncation import PromptCutter, middle_cut

TOKENIZERS = (byte_level, chat, sentencepiece_like)


def prose(words, seed=3):
    source, text = essay(Random(seed)), ""
    while text.count(" ") < words:
        text += next(source) + " "
    return text.strip()


@pytest.fixture
def long_rows(tmp_path):
    """A file of qasper with three rows of about 1,500 words."""
    rows = [
        row("qasper", context=prose(1500, seed), input=f"Question {seed}?") for seed in (1, 2, 3)
    ]
    return write_rows(tmp_path / "qasper.jsonl", *rows)


# --- the cutter -------------------------------------------------------------------------------
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("rule", ["v1", "v2"])
def test_both_ends_stay_and_the_question_with_them(tokenizer, rule):
    context, question = prose(300), "\n\nWhat is it?  Tell {us}."
    cutter = PromptCutter(tokenizer(), context, question)
    for limit in (60, 61, 200):
        cut = cutter.cut(limit, rule)
        assert cut.boundary
        assert cut.question == question
        assert cut.removed == middle_cut(cutter.tokens, limit, rule).removed
        head = next(
            n for n in range(len(cut.context), 0, -1) if context.startswith(cut.context[:n])
        )
        assert context.endswith(cut.context[head:])
        kept = len(tokenizer().encode(cut.context + question, add_special_tokens=False))
        assert kept <= limit + 2


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_prompt_within_the_limit_is_left_alone(tokenizer):
    context, question = "a sea.\n\n", " Why?"
    cutter = PromptCutter(tokenizer(), context, question)
    assert cutter.cut(cutter.tokens) == (context, question, 0, True)


@pytest.mark.parametrize("verbatim", [True, False])
def test_a_cut_into_the_question_leaves_no_boundary(verbatim):
    question = " ".join(["a question without an end"] * 30)
    cut = PromptCutter(byte_level(), prose(50), question, verbatim=verbatim).cut(20)
    assert not cut.boundary
    assert cut.question == ""
    assert question.endswith(cut.context[-20:])


def test_the_official_cut_decodes_both_halves_and_joins_them():
    tokenizer = byte_level()
    context, question = prose(400), "\n\nWhat is it?"
    ids = tokenizer(context + question)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    for limit in (80, 81):
        half = limit // 2
        expected = tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(
            ids[-half:], skip_special_tokens=True
        )
        cut = PromptCutter(tokenizer, context, question, verbatim=False).cut(limit)
        assert cut.context + cut.question == expected
        assert cut.question == question
        assert cut.removed == len(ids) - 2 * half


def test_no_character_is_torn():
    random = Random(5)
    context = "".join(chinese.sentence(random) for _ in range(60))
    for limit in range(60, 90):
        cut = PromptCutter(byte_level(), context, "问题是什么?").cut(limit)
        assert "\ufffd" not in cut.context
        assert cut.question == "问题是什么?"


class SlowTokenizer:
    """A tokenizer without offsets: words, or with ``lossy`` words in lower case."""

    is_fast = False

    def __init__(self, lossy=False):
        self._lossy, self._words = lossy, []

    def __call__(self, text, **_):
        pieces = [word + " " for word in text.split(" ")]
        pieces[-1] = pieces[-1][:-1]
        self._words += pieces
        start = len(self._words) - len(pieces)
        return {"input_ids": list(range(start, len(self._words)))}

    def decode(self, ids, skip_special_tokens):
        text = "".join(self._words[place] for place in ids)
        return text.lower() if self._lossy else text


def test_a_slow_tokenizer_keeps_the_boundary_only_where_decoding_gives_the_question_back():
    context, question = prose(60), " What Is It?"
    exact = PromptCutter(SlowTokenizer(), context, question).cut(20)
    assert (exact.boundary, exact.question) == (True, question)
    lossy = PromptCutter(SlowTokenizer(lossy=True), context, question).cut(20)
    assert (lossy.boundary, lossy.question) == (False, "")


# --- samples ----------------------------------------------------------------------------------
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("length", [400, 401, 900])
def test_a_cut_sample_fits_its_length_and_keeps_its_question(tokenizer, length, long_rows):
    for sample in tasks.build("longbench/qasper", tokenizer(), length, 3, path=str(long_rows)):
        prompt = encode(sample, tokenizer())
        assert len(prompt) + 128 == sample.length <= length
        assert sample.length >= 0.95 * length
        assert sample.metadata["cut_tokens"] > 0
        assert sample.metadata["cut"] == "middle-v1"
        assert "query_aware_only" not in sample.metadata
        assert sample.question.endswith(f"Question {sample.index + 1}?")
        assert sample.context.startswith("Read this scientific paper.")


def test_without_a_length_nothing_is_cut(long_rows):
    for sample in tasks.build("longbench/qasper", byte_level(), 0, 3, path=str(long_rows)):
        assert sample.metadata["cut_tokens"] == 0
        assert (sample.target_length, sample.length) == (0, len(encode(sample, byte_level())) + 128)


def test_a_prompt_limit_of_its_own_holds_with_and_without_a_length(long_rows):
    for length in (0, 2000):
        (sample,) = tasks.build(
            "longbench/qasper", chat(), length, 1, path=str(long_rows), max_prompt_tokens=350
        )
        assert 340 <= len(encode(sample, chat())) <= 350
    with pytest.raises(UserError, match="max_prompt_tokens=1; a prompt needs 2 tokens"):
        tasks.build("longbench/qasper", chat(), 0, 1, path=str(long_rows), max_prompt_tokens=1)


def test_the_official_truncation_may_exceed_its_limit_by_template_and_begun_answer(long_rows):
    options = {"path": str(long_rows), "max_prompt_tokens": 350, "truncation": "official"}
    (sample,) = tasks.build("longbench/qasper", chat(), 0, 1, **options)
    tokens = len(encode(sample, chat()))
    assert 350 < tokens <= 360
    assert sample.metadata["cut"] == "middle-v1-official"
    assert sample.length == tokens + 128


def test_a_question_longer_than_what_is_kept_makes_the_sample_query_aware(tmp_path):
    file = write_rows(tmp_path / "qasper.jsonl", row("qasper", input=prose(300) + " Why?"))
    (sample,) = tasks.build("longbench/qasper", byte_level(), 400, 1, path=str(file))
    assert sample.metadata["query_aware_only"]
    assert sample.question == ""
    assert sample.context.endswith("Why?")
    assert sample.length <= 400


def test_v2_says_which_samples_were_cut(tmp_path):
    rows = [choice_row(context="a short text."), choice_row(context=prose(1500))]
    file = write_rows(tmp_path / "data.json", *rows)
    short, long = tasks.build("longbench_v2", byte_level(), 500, 2, path=str(file))
    assert [short.metadata["truncated"], long.metadata["truncated"]] == [False, True]
    assert long.metadata["cut"] == "middle-v2"
    assert long.length <= 500


def test_a_length_below_the_answer_is_refused(long_rows):
    with pytest.raises(UserError, match="lets 128 tokens answer, a length of 120 leaves no prompt"):
        tasks.build("longbench/qasper", byte_level(), 120, 1, path=str(long_rows))
    with pytest.raises(UserError, match="row a1: a limit of 5 tokens leaves no room for"):
        tasks.build("longbench/qasper", chat(), 133, 1, path=str(long_rows))


def test_a_document_with_a_bos_token_is_read_as_it_is(tmp_path):
    rows = [row("qasper"), row("qasper", _id="a2", context="a text with <s> in it")]
    file = write_rows(tmp_path / "qasper.jsonl", *rows)
    _, sample = tasks.build("longbench/qasper", byte_level(), 0, 2, path=str(file))
    assert "a text with <s> in it" in sample.context


def test_real_texts_are_cut_as_published(published_files):
    tokenizer, limit = byte_level(), 600
    path = str(published_files / "longbench" / "multi_news.jsonl")
    whole = tasks.build("longbench/multi_news", tokenizer, 0, 6, path=path)
    fitted = tasks.build("longbench/multi_news", tokenizer, limit + 512, 6, path=path)
    options = {"path": path, "max_prompt_tokens": limit, "truncation": "official"}
    official = tasks.build("longbench/multi_news", tokenizer, 0, 6, **options)
    for full, fit, cut in zip(whole, fitted, official, strict=True):
        assert full.length > fit.length
        assert limit - 3 <= len(encode(fit, tokenizer)) <= limit
        assert fit.question == cut.question == full.question
        prefix = len(tokenizer.encode(full.answer_prefix, add_special_tokens=False))
        ids = tokenizer(full.context + full.question)["input_ids"]
        half = (limit - prefix) // 2
        expected = [tokenizer.decode(part, skip_special_tokens=True) for part in
                    (ids[:half], ids[-half:])]  # fmt: skip
        assert cut.context + cut.question == "".join(expected)
        assert cut.metadata["cut_tokens"] == len(ids) - 2 * half
