"""The embedded model's vocabulary, wording, tokenizer and training documents agree."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from catekv.errors import UserError
from catekv.tasks.wording import vocabulary
from catekv.tasks.wording.small import SmallWording
from catekv.tasks.wording.tokenizer import build_tokenizer
from experiments.embedded import language, probe

WORDING = SmallWording()


def ids(text: str) -> list[int]:
    return build_tokenizer()(text, add_special_tokens=False).input_ids


def test_every_word_has_one_id_and_no_answer_contains_another() -> None:
    words = vocabulary.words()
    assert len(set(words)) == len(words)
    assert {len(name) for name in vocabulary.names()} == {5}
    assert {len(word) for word in vocabulary.coded_words()} == {6}
    assert not set(vocabulary.names()) & set(vocabulary.prose_words())


def test_tokenizer_puts_bos_once_and_restores_the_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = WORDING.needle("numbers", vocabulary.names()[3], "47 03 88")
    encoded = tokenizer(text + "\n" + text).input_ids
    assert encoded.count(tokenizer.bos_token_id) == 1
    assert encoded[0] == tokenizer.bos_token_id == vocabulary.BEGIN
    assert tokenizer.decode(encoded, skip_special_tokens=True) == f"{text} {text}"
    assert tokenizer.init_kwargs["catekv_wording"] == "small"
    assert tokenizer("zebra").input_ids[-1] == tokenizer.unk_token_id


def test_all_texts_of_the_wording_are_in_the_vocabulary() -> None:
    random = Random(1)
    prose = WORDING.essay(random)
    sentences = [next(prose) for _ in range(2000)]
    assert len(set(sentences)) == len(sentences)
    keys = WORDING.keys("words", 4, random)
    texts = [
        WORDING.filler_line,
        *sentences,
        WORDING.needle_question("numbers", keys, 1),
        WORDING.needle_question("numbers", keys[:1], 4),
        WORDING.frequent_question(),
        WORDING.frequent_answer_prefix(),
        WORDING.frequent_noise,
        *WORDING.coded_words(200, random),
    ]
    assert vocabulary.UNKNOWN not in ids(" ".join(texts))


def test_document_patterns_equal_the_wording() -> None:
    random = Random(2)
    names = WORDING.keys("words", 4, random)
    values = WORDING.values("numbers", 4, random)
    name_ids, value_ids = [ids(n)[0] for n in names], [ids(v) for v in values]
    assert language.needle(name_ids[0], value_ids[0]) == ids(
        WORDING.needle("numbers", names[0], values[0])
    )
    for asked, per_key in ((names[:1], 1), (names, 1), (names[:1], 4)):
        text = " ".join(
            (
                WORDING.needle_question("numbers", asked, per_key),
                WORDING.needle_answer_prefix("numbers", asked, per_key),
            )
        )
        assert language.needle_question(name_ids[: len(asked)], per_key > 1) == ids(text)
    assert language.assignment(value_ids[0], name_ids[0]) == ids(
        WORDING.assignment(names[0], values[0], True)
    )
    assert language.assignment(name_ids[:1], name_ids[1]) == ids(
        WORDING.assignment(names[1], names[0], False)
    )
    question = WORDING.chain_question(values[0]), WORDING.chain_answer_prefix(values[0], 5)
    assert language.chain_question(value_ids[0]) == ids(" ".join(question))
    question = WORDING.frequent_question(), WORDING.frequent_answer_prefix()
    assert language.frequent_question() == ids(" ".join(question))


def test_answers_end_with_the_end_token() -> None:
    names, value = [1500, 1501], [20, 21, 22]
    for answer in (
        language.needle_answer(names, [value, value]),
        language.chain_answer(names),
        language.frequent_answer(names),
    ):
        assert answer[-1] == vocabulary.END
        assert answer.count(vocabulary.END) == 1


@pytest.mark.parametrize("length", [64, 512])
def test_documents_have_their_length_and_rising_positions(length: int) -> None:
    sampler = language.DocumentSampler(seed=5)
    answers = 0
    for number in range(40):
        document = sampler.document(number, length)
        assert len(document.tokens) == len(document.positions) == len(document.answers) == length
        assert document.tokens[0] == vocabulary.BEGIN
        assert document.positions[0] == 0
        assert document.positions[-1] < language.MAX_POSITION
        assert np.all(np.diff(document.positions) >= 1)
        answers += int(document.answers.sum())
    assert 0.05 < answers / (40 * length) < 0.4


def test_answers_in_documents_are_true() -> None:
    """Every asked key's value, every chain and every multi-value list is in the text before."""
    words = vocabulary.words()
    checked = 0
    for number in range(60):
        document = language.DocumentSampler(6, language.Mixture(frequent_share=0.0)).document(
            number, 512
        )
        text = " ".join(words[token] for token in document.tokens)
        for end in [match.start() for match in re.finditer(" </s>", text)]:
            start = text.rindex("? ", 0, end) + 2
            answer, before = text[start:end], text[:start]
            if not answer.startswith("pass"):
                answer = answer.replace("all", "note")
                for needle in answer.split(" .")[:-1]:
                    assert f"{needle.strip()} ." in before
                    checked += 1
            else:
                tokens = answer.split()[1:-1]
                assert f"pass {' '.join(tokens[:4])} ." in before
                for source, name in pairwise(tokens[3:]):
                    assert f"pass {source} {name} ." in before
                assert f"pass {tokens[-1]} " not in text
                checked += 1
    assert checked > 300


def test_random_streams_of_training_and_probes_differ() -> None:
    assert language.STREAM != probe.STREAM
    first = language.DocumentSampler(seed=1).document(0, 256).tokens
    assert np.array_equal(first, language.DocumentSampler(seed=1).document(0, 256).tokens)
    assert not np.array_equal(first, language.DocumentSampler(seed=2).document(0, 256).tokens)


@pytest.mark.parametrize("task", probe.TASKS)
def test_probe_texts_are_in_the_vocabulary_and_about_the_length(task: str) -> None:
    prompt, answer = probe.probe_text(task, 512, Random(3))
    tokens = ids(f"{prompt} {answer}")
    assert vocabulary.UNKNOWN not in tokens
    assert 0.85 * 512 < len(tokens) <= 520


def test_values_of_one_key_may_be_listed_in_any_order() -> None:
    expected = [10, 11, 12, 4, 6, 99, 20, 21, 22, 4, vocabulary.END]
    assert probe._is_right(expected, expected, any_order=False)
    swapped = [20, *expected[1:]]
    assert probe._is_right(swapped, expected, any_order=True)
    assert not probe._is_right(swapped, expected, any_order=False)
    repeated = [*expected[:6], 10, *expected[7:]]
    assert not probe._is_right(repeated, expected, any_order=True)


def test_too_many_names_and_foreign_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="1400 names"):
        WORDING.keys("words", 1401, Random(0))
    with pytest.raises(UserError, match="uuids"):
        WORDING.values("uuids", 1, Random(0))
