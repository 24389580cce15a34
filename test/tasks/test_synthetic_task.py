"""The task ``synthetic``: a code early, in the middle or late, and the published form of it."""

from __future__ import annotations

import re

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.synthetic import compat
from catekv.tasks.wording.tokenizer import build_tokenizer


def build(length=1024, count=3, tokenizer=None, **options):
    tokenizer = tokenizer or ruler_tokenizers.byte_level()
    return tasks.build("synthetic", tokenizer, length, count, **options)


def paragraphs(sample):
    return re.findall(r"^Paragraph (\d+)\. (.+)$", sample.context, re.MULTILINE)


@pytest.mark.parametrize("kind", sorted(ruler_tokenizers.ALL))
def test_length_is_fitted_through_the_real_input_path(kind):
    tokenizer = ruler_tokenizers.ALL[kind]()
    for length in (1024, 4096):
        for sample in build(length, 3, tokenizer):
            assert sample.length == len(encode(sample, tokenizer)) + sample.max_new_tokens
            assert 0.97 * length <= sample.length <= length


def test_the_code_is_early_in_the_middle_or_late():
    samples = build(8192, 6)
    assert [sample.metadata["depth"] for sample in samples] == [5, 50, 95, 5, 50, 95]
    for sample in samples:
        numbers = [int(number) for number, _ in paragraphs(sample)]
        assert numbers == list(range(1, len(numbers) + 1))
        (place,) = (int(n) for n, text in paragraphs(sample) if sample.outputs[0] in text)
        assert place == sample.metadata["key_paragraph"]
        assert place - 1 == int(sample.metadata["depth"] / 100 * len(numbers))
        assert sample.depths[0] == pytest.approx(sample.metadata["depth"] / 100, abs=0.04)


def test_codes_are_random_and_stand_once():
    samples = build(1024, 12)
    assert len({sample.outputs for sample in samples}) == 12
    for sample in samples:
        assert re.fullmatch(r"[A-Z]{3}-\d{5}-[A-Z]{3}", sample.outputs[0])
        assert sample.context.count(sample.outputs[0]) == 1
        number = re.search(r"document (\d+)", sample.question).group(1)
        assert f"The access code of document {number} is {sample.outputs[0]}." in sample.context
        assert sample.outputs[0] not in sample.question + sample.answer_prefix


def test_paragraphs_are_whole_and_none_comes_twice():
    (sample,) = build(4096, 1)
    texts = [text for _, text in paragraphs(sample) if sample.outputs[0] not in text]
    assert len(set(texts)) == len(texts) > 20
    assert {len(text.split(". ")) for text in texts[:-1]} == {3}
    assert all(text.endswith(".") for text in texts)


def test_a_grid_of_depths_with_rounds():
    samples = build(2048, 6, depths="0,100", rounds=2)
    assert [sample.metadata["depth"] for sample in samples] == [0, 0, 100, 100, 0, 100]
    assert samples[0].metadata["key_paragraph"] == 1
    assert samples[2].metadata["key_paragraph"] == samples[2].metadata["paragraphs"]
    assert [s.metadata["depth"] for s in build(2048, 3, depths=5)] == [0, 100, 50]
    assert [s.metadata["depth"] for s in build(2048, 2, depths="late,20")] == [95, 20]


def test_a_sample_depends_on_its_index_only():
    many = build(1024, 4)
    assert build(1024, 2, first=2) == many[2:]
    assert build(1024, 1) != build(1024, 1, seed=1)


def test_scores_look_at_the_answer_alone():
    (sample,) = build(1024, 1)
    (code,) = sample.outputs
    assert tasks.score(f" {code}\n", sample) == {"official": 1, "strict": 1, "exact": 1}
    assert tasks.score(f"It is {code}.", sample) == {"official": 1, "strict": 1, "exact": 0}
    assert tasks.score(f"{code}9", sample) == {"official": 1, "strict": 0, "exact": 0}
    assert set(tasks.score("", sample).values()) == {0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": "early,never"}, "depths="),
        ({"rounds": 0}, "rounds=0"),
        ({"compat": 1}, "compat=1"),
        ({"positions": 3}, "valid options: depths, rounds, compat"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        build(1024, 1, **options)


def test_too_short_a_length_names_the_shortest():
    with pytest.raises(UserError, match=r"at least \d+ tokens"):
        build(60, 1)


def test_the_embedded_models_words():
    tokenizer = build_tokenizer()
    for sample in build(512, 3, tokenizer):
        assert tokenizer.unk_token_id not in encode(sample, tokenizer).ids
        key = re.fullmatch(r"ask (\w+) \?", sample.question).group(1)
        assert f"note {key} {sample.outputs[0]} ." in sample.context
    with pytest.raises(UserError, match="leave compat out"):
        build(512, 1, tokenizer, compat=True)


def test_samples_survive_a_file(tmp_path):
    samples = build(1024, 2)
    tasks.write(tmp_path / "samples.jsonl", samples)
    assert [s.outputs for s in tasks.read(tmp_path / "samples.jsonl")] == [
        s.outputs for s in samples
    ]
    (tmp_path / "rows.jsonl").write_text('{"code": "A-1-B"}\n')
    with pytest.raises(UserError, match="always built"):
        tasks.read(tmp_path / "rows.jsonl", "synthetic")


# --- the published form -----------------------------------------------------------------------


def test_published_codes_and_places():
    samples = build(16384, 10, compat=True)
    assert [sample.outputs[0] for sample in samples] == [f"XYZ-{42 * n}-ABC" for n in range(10)]
    for number, sample in enumerate(samples):
        parts = sample.context.split("\n\n")
        assert len(parts) == 100
        (place,) = (n for n, part in enumerate(parts) if sample.outputs[0] in part)
        assert place == (5, 50, 95)[number % 3]
        assert f"document {number}" in sample.question
        assert sample.max_new_tokens == 50


def test_published_cut():
    tokens = list(range(8136))
    # the early code lies within the budget, so that the beginning is kept
    assert compat.cut(tokens, 5, 500) == tokens[:500]
    # otherwise half goes to the beginning, half around 50 times the hundredth part, 81
    assert compat.cut(tokens, 50, 1001) == tokens[:500] + tokens[3800:4301]
    assert compat.cut(tokens, 50, 4096) == tokens[:4096]
    # around a late code the text may end before the budget is used
    assert compat.cut(tokens, 95, 7000) == tokens[:3500] + tokens[5945:]
    assert compat.cut(tokens, 95, 9000) == tokens


def test_published_cut_loses_codes_that_its_estimate_puts_within_the_budget():
    tokenizer = ruler_tokenizers.byte_level()
    (whole,) = build(16384, 1, compat=True)
    natural = whole.metadata["natural_tokens"]
    assert len(encode(whole, tokenizer)) < 16384
    question = len(tokenizer.encode("What is the secret code of document 0?")) - 1
    half = 50 * (natural // 100) + question + 4
    samples = build(half, 10, compat=True)
    lost = [sample.index for sample in samples if not sample.metadata["key_kept"]]
    assert lost == [1, 4, 7]
    assert all(sample.depths == () for sample in samples if sample.index in lost)


def test_published_input_has_an_end_of_text_in_its_middle_and_no_template():
    tokenizer = ruler_tokenizers.chat()
    (sample,) = build(1024, 1, tokenizer, compat=True)
    prompt = encode(sample, tokenizer)
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.question_ids[0] == tokenizer.eos_token_id
    assert tokenizer.decode(prompt.ids).endswith("document 0?")
    # the published budget leaves no room for the answer
    assert 1024 - 4 <= len(prompt) <= 1024
    assert sample.length == len(prompt) + 50 > sample.target_length
