"""Rows of SimCalKV's comparison: splits, multiple choice, where rows come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from catekv.errors import UserError
from catekv.models import embedded
from catekv.tasks.wording import vocabulary
from experiments.simcalkv.benchmarks import DATASETS, Reading, load
from experiments.simcalkv.choice_rows import built_in_rows
from experiments.simcalkv.choices import CHOICE_DATA, encode_choices, openbookqa, piqa, winogrande
from experiments.simcalkv.split import Split


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(embedded.path()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", range(20)),
        ("test[:8]", range(8)),
        ("test[8:12]", range(8, 12)),
        ("validation[-3:]", range(17, 20)),
        ("test[:-15]", range(5)),
        ("test[:10%]", range(2)),
        ("test[50%:]", range(10, 20)),
        ("test[:100]", range(20)),
        ("test[-10%:]", range(18, 20)),
        ("test[:-90%]", range(2)),
        ("test[-1%:]", range(0)),  # less than a row of 20
        ("test[-150%:]", range(20)),
        ("test[0:3]", range(3)),
    ],
)
def test_splits_name_rows(text: str, expected: range) -> None:
    split = Split.parse(text)
    assert list(split.range(20)) == list(expected)
    assert str(split) == text


def test_a_split_says_how_many_rows_it_needs() -> None:
    assert Split.parse("test[2:8]").least_rows == 8
    for text in ("test", "test[3:]", "test[-3:]", "test[:10%]", "test[:-2]"):
        assert Split.parse(text).least_rows is None


@pytest.mark.parametrize("text", ["", "test[8]", "test[:8", "[:8]", "test[a:b]", "te st"])
def test_other_splits_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write it like test\[:100\]"):
        Split.parse(text)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(UserError, match=r"test\[5:5\] of xsum holds no row of the 9"):
        Split.parse("test[5:5]").take(range(9), "xsum")
    with pytest.raises(UserError, match=r"test\[20:\] of xsum holds no row of the 9"):
        Split.parse("test[20:]").take(range(9), "xsum")


def test_rows_as_they_are_published() -> None:
    found = piqa(3, {"goal": "To sit,", "sol1": "take a chair", "sol2": "fly", "label": 0})
    assert (found.identifier, found.context, found.correct) == ("3", "To sit,", 0)
    assert found.continuations == (" take a chair", " fly")
    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    row = {"id": "7-1", "question_stem": "Which?", "choices": choices, "answerKey": "C"}
    found = openbookqa(0, row)
    assert (found.identifier, found.options[found.correct]) == ("7-1", "c")
    row = {"sentence": "The cup broke the _ at once.", "option1": "plate", "option2": "air",
           "answer": "1"}  # fmt: skip
    found = winogrande(0, row)
    assert found.context == "The cup broke the"
    assert found.continuations == (" plate at once.", " air at once.")
    assert [text[n:] for text, n in zip(found.continuations, found.rated_from, strict=True)] == [
        " at once.",
        " at once.",
    ]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("piqa", {"goal": "x", "sol1": "a", "sol2": "b"}, "line 1: field 'label' is missing"),
        ("piqa", {"goal": "x", "sol1": "a", "sol2": "b", "label": -1}, "use validation"),
        ("piqa", {"goal": "x", "sol1": "a", "sol2": " ", "label": 0}, "choice 2 of 2 is empty"),
        ("winogrande", {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"},
         "not exactly one gap"),
        ("winogrande", {"sentence": "a _ .", "option1": "a", "option2": "b", "answer": ""},
         "expected one of 1, 2"),
        ("openbookqa", {"question_stem": "x", "choices": ["a"], "answerKey": "A"}, "no object"),
        ("openbookqa", {"question_stem": "x", "choices": {"text": ["a"], "label": ["A"]},
                        "answerKey": "A"}, "1 texts"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(name: str, row: dict, message: str, tmp_path: Path, tokenizer) -> None:
    file = tmp_path / f"{name}.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        load(name, Split.parse("test"), tokenizer, Reading(path=str(tmp_path)))


def test_the_first_choice_token_is_not_rated_by_the_uncompressed_prefill(tokenizer) -> None:
    text = "the dog walked home"
    row = {"goal": text, "sol1": "slowly .", "sol2": "quickly .", "label": 1}
    found = encode_choices(piqa(0, row), tokenizer)
    words = tokenizer(text)["input_ids"]
    assert found.context == words[:-1]
    for own, word in zip(found.continuations, ("slowly", "quickly"), strict=True):
        assert own == [words[-1], *tokenizer.convert_tokens_to_ids([word, "."])]
    assert found.rated == (2, 2)
    row = {"sentence": "the dog saw the _ in the evening .", "option1": "cat", "option2": "owl",
           "answer": "1"}  # fmt: skip
    assert encode_choices(winogrande(0, row), tokenizer).rated == (4, 4)


@pytest.mark.parametrize("name", sorted(CHOICE_DATA))
def test_generated_rows_are_rows_and_known_to_the_embedded_model(name: str, tokenizer) -> None:
    for wording in ("small-1", "english"):
        rows = built_in_rows(name, 40, 42, wording)
        assert rows[:5] == built_in_rows(name, 5, 42, wording)
        parsed = [CHOICE_DATA[name].parse(i, row) for i, row in enumerate(rows)]
        assert {question.correct for question in parsed} == {0, 1}
        if wording == "small-1":
            for question in parsed:
                ids = tokenizer(question.context + question.continuations[0])["input_ids"]
                assert vocabulary.UNKNOWN not in ids


def test_generated_rows_are_only_used_when_asked_for(tokenizer, monkeypatch) -> None:
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    monkeypatch.setattr("catekv.tasks.rows.sources.hub_answers", lambda: False)
    with pytest.raises(UserError, match="source=built-in"):
        load("piqa", Split.parse("test[:2]"), tokenizer, Reading())
    examples = load("piqa", Split.parse("test[1:3]"), tokenizer, Reading(source="built-in"))
    assert [example.identifier for example in examples] == ["1", "2"]
    assert {example.data for example in examples} == {"built-in"}
    with pytest.raises(UserError, match=r"say how many, like test\[:8\]"):
        load("piqa", Split.parse("test"), tokenizer, Reading(source="built-in"))


def test_limits_are_checked(tokenizer) -> None:
    built_in = Reading(source="built-in", input_tokens=20)
    with pytest.raises(UserError, match="20 are allowed; raise --max_input_tokens"):
        load("piqa", Split.parse("test[:1]"), tokenizer, built_in)
    with pytest.raises(UserError, match="--max_new_tokens 0 must be at least 1"):
        load("piqa", Split.parse("test[:1]"), tokenizer, Reading(new_tokens=0))
    with pytest.raises(UserError, match="exceed the model's window of 100"):
        load("xsum", Split.parse("test[:1]"), tokenizer, Reading(input_tokens=90, window=100))


def test_unknown_datasets_are_refused(tokenizer) -> None:
    with pytest.raises(UserError, match="unknown dataset 'squad'; available: xsum, cnn_dailymail"):
        load("squad", Split.parse("test"), tokenizer, Reading())
    assert len(DATASETS) == 13
