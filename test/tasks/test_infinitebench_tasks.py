"""InfiniteBench: official rows, samples drawn at any length, scores from a record alone."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from statistics import median

import pytest
import ruler_tokenizers
from transformers import AutoTokenizer

from catekv import tasks
from catekv.errors import UserError
from catekv.evaluation.predictions.scores import read_predictions
from catekv.models import embedded
from catekv.tasks import metrics
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.infinitebench.family import FAMILY
from catekv.tasks.families.infinitebench.options import KINDS, swept_depth
from catekv.tasks.families.infinitebench.prompts import PROMPTS
from catekv.tasks.rows import sources

NAMES = [task.name.removeprefix("infinitebench/") for task in FAMILY.tasks]
DRAWN = ["passkey", "number_string", "kv_retrieval", "math_find", "math_calc", "code_run"]
BOOKS = [name for name in NAMES if name not in DRAWN]
#: answers that only a person (or a real row) can give; label as in the official files
ANSWERS = {
    "passkey": ["71432"],
    "number_string": ["3000077442"],
    "kv_retrieval": "c14cb8ba",
    "longbook_sum_eng": ["He left.\nShe stayed."],
    "longbook_choice_eng": ["Anna"],
    "longbook_qa_eng": ["Rome", "the city of Rome"],
    "longbook_qa_chn": ["北京"],
    "longdialogue_qa_eng": ["RICK", "RICK BLAINE"],
    "math_find": [88],
    "math_calc": [3, 5, 4],
    "code_run": [-7],
    "code_debug": ["get_name"],
}
OPTIONS = {
    "longbook_choice_eng": ["Otto", "Anna", "Ida", "Paul"],
    "code_debug": ["set_name", "main", "get_name", "close"],
}


def row(name, **fields):
    whole = {
        "id": 0,
        "context": "the harbour is quiet. " * 100,
        "input": "What is it?",
        "answer": ANSWERS[name],
        "options": OPTIONS.get(name, []),
    }
    return {**whole, **fields}


@pytest.fixture
def written(tmp_path):
    """``written("passkey.jsonl", row, ...)``: an official file."""

    def write(name, *rows):
        file = tmp_path / name
        lines = [json.dumps(one, ensure_ascii=False) for one in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


def small():
    return AutoTokenizer.from_pretrained(embedded.path())


def build(name, length=1024, count=2, tokenizer=None, **options):
    tokenizer = tokenizer or ruler_tokenizers.byte_level()
    if name in BOOKS and "path" not in options:
        options["source"] = "built-in"
    return tasks.build(f"infinitebench/{name}", tokenizer, length, count, **options)


def test_all_twelve_tasks_exist():
    assert len(NAMES) == 12
    assert set(NAMES) == set(metrics.infinitebench.TASKS)
    assert tasks.max_new_tokens("infinitebench/kv_retrieval") == 50


@pytest.mark.parametrize("name", NAMES)
def test_official_rows_keep_question_text_and_answer(name, written):
    asked = "What about {this} one?"
    file = written(f"{name}.jsonl", row(name, input=asked), row(name, id=7))
    first, second = tasks.read(file)
    assert first.task == f"infinitebench/{name}"
    assert "the harbour is quiet." in first.context
    assert "the harbour" not in first.question
    assert (second.index, second.metadata["id"]) == (1, 7)
    assert first.max_new_tokens == tasks.max_new_tokens(first.task)
    if "{input}" in PROMPTS[name].question:
        assert asked in first.question
    for option in OPTIONS.get(name, []):
        assert option in first.question


@pytest.mark.parametrize("name", NAMES)
def test_oracle_scores_one_and_silence_zero_on_official_rows(name, written):
    (sample,) = tasks.read(written(f"{name}.jsonl", row(name)))
    assert tasks.score(sample.outputs[0], sample) == {"official": 1.0, "strict": 1.0}
    assert tasks.score("", sample) == {"official": 0.0, "strict": 0.0}


def test_labels_of_choices_are_text_and_letter(written):
    (sample,) = tasks.read(written("longbook_choice_eng.jsonl", row("longbook_choice_eng")))
    assert sample.scoring["label"] == ["Anna", "B"]
    assert tasks.score("B", sample)["official"] == 1
    assert tasks.score("A. Anna", sample)["official"] == 0
    (sample,) = tasks.read(written("code_debug.jsonl", row("code_debug")))
    assert sample.scoring["label"] == ["get_name", "C"]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("passkey", {"answer": []}, "expected at least one answer"),
        ("passkey", {"answer": None}, "field 'answer' is None, expected at least one answer"),
        ("passkey", {"answer": True}, "field 'answer' is True"),
        ("number_string", {"answer": {}}, "field 'answer' is {}, expected at least one answer"),
        ("number_string", {"answer": [""]}, "holds the answer '', which is no text"),
        ("kv_retrieval", {"answer": ""}, "holds the answer '', which is no text"),
        ("longbook_sum_eng", {"answer": [None]}, "holds the answer None, which is no text"),
        ("longbook_qa_eng", {"answer": ["Rome", True]}, "holds the answer True, which is no text"),
        ("passkey", {"context": 5}, "field 'context' is 5, expected a text"),
        ("passkey", {"input": ["a"]}, "field 'input' is .*, expected a text"),
        ("passkey", {"id": {"a": 1}}, "field 'id' is .*, expected a text or a whole number"),
        ("passkey", {"id": None}, "field 'id' is None, expected a text or a whole number"),
        ("code_debug", {"options": ["a", "b"]}, "field 'options' is .*, expected four texts"),
        ("code_debug", {"options": "abcd"}, "field 'options' is 'abcd', expected four texts"),
        ("code_debug", {"options": ["a", "b", "get_name", 4]}, "expected four texts"),
        ("longbook_choice_eng", {"answer": ["Karl"]}, "'Karl' is none of the options"),
        ("math_find", {"answer": ["many"]}, "holds 'many', which is not a number"),
        ("math_find", {"answer": float("inf")}, "holds inf, which is not a number"),
        ("math_calc", {"answer": "12"}, "is not a list of numbers"),
        ("math_calc", {"answer": [1, 2.5]}, "holds 2.5, which is not a whole number"),
        ("code_run", {"answer": "-7"}, "holds '-7', which is not a whole number"),
        ("code_run", {"answer": None}, "holds None, which is not a whole number"),
        ("code_run", {"answer": []}, "expected at least one answer"),
    ],
)
def test_bad_rows_name_file_and_line(name, fields, message, written):
    file = written(f"{name}.jsonl", row(name), row(name, **fields))
    with pytest.raises(UserError, match=rf"{name}\.jsonl, line 2: .*{message}"):
        tasks.read(file)
    with pytest.raises(UserError, match=rf"{name}\.jsonl, line 2: .*{message}"):
        build(name, 100_000, 2, path=str(file))


@pytest.mark.parametrize("digits", [20, 400])
def test_long_numbers_are_compared_digit_by_digit(digits, written):
    number = int("7" * digits)
    (sample,) = tasks.read(written("math_find.jsonl", row("math_find", answer=[number])))
    assert tasks.score(f"It is {number}.", sample) == {"official": 1.0, "strict": 1.0}
    assert tasks.score(f"It is {number + 1}.", sample) == {"official": 0.0, "strict": 0.0}
    assert tasks.score(f"{number}, not {number + 1}", sample) == {"official": 1.0, "strict": 0.0}
    (sample,) = tasks.read(written("math_calc.jsonl", row("math_calc", answer=[number, 3])))
    assert tasks.score(f"{number}, 3", sample) == {"official": 1.0, "strict": 1.0}
    assert tasks.score(f"{number}, 3, 4", sample) == {"official": 1.0, "strict": 0.0}


def test_missing_field_and_torn_line_are_named(written):
    file = written("passkey.jsonl", row("passkey"))
    file.write_text(file.read_text() + '{"id": 1, "context": "a"', encoding="utf-8")
    with pytest.raises(UserError, match=r"passkey\.jsonl, line 2: not a complete JSON"):
        tasks.read(file)
    incomplete = {"id": 1, "context": "a", "input": ""}
    file = written("passkey.jsonl", incomplete)
    with pytest.raises(UserError, match=r"line 1: field 'answer' is missing"):
        tasks.read(file, "infinitebench/passkey")


def test_missing_data_are_one_sentence(monkeypatch):
    def no_network(hub):
        raise UserError("the hub cannot be reached from here")

    monkeypatch.setattr(sources, "hub_rows", no_network)
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    with pytest.raises(UserError, match=r"longbook_qa_eng\.jsonl.*source=built-in") as raised:
        tasks.build("infinitebench/longbook_qa_eng", ruler_tokenizers.byte_level(), 1024, 1)
    assert "\n" not in str(raised.value)


def test_the_middle_of_a_long_book_is_cut_and_counted(written):
    book = " ".join(f"word{n}" for n in range(2000))
    rows = [row("longbook_qa_eng", context=book, id=n, input=f"Q{n}?") for n in range(3)]
    file = str(written("longbook_qa_eng.jsonl", *rows))
    tokenizer = ruler_tokenizers.byte_level()
    whole = build("longbook_qa_eng", 0, 3, path=file)
    cut = build("longbook_qa_eng", 1000, 3, path=file)
    assert [sample.metadata["cut_tokens"] for sample in whole] == [0, 0, 0]
    for sample in cut:
        assert len(encode(sample, tokenizer)) + 40 == sample.length <= 1000
        assert sample.length >= 990
        assert sample.metadata["cut_tokens"] == pytest.approx(whole[0].length - 1000, abs=10)
        assert "word0 " in sample.context
        assert "word1999" in sample.context
        assert "word1000 " not in sample.context
        assert sample.metadata["data"].startswith("file:longbook_qa_eng.jsonl:")
    assert len({sample.group for sample in cut}) == 1
    assert cut[0].group
    assert [sample.index for sample in build("longbook_qa_eng", 1000, 5, path=file, first=2)] == [2]


@pytest.mark.parametrize("name", DRAWN)
def test_rows_whose_answer_a_cut_would_change_are_refused(name, written):
    file = written(f"{name}.jsonl", row(name))
    assert len(build(name, 40_000, 1, path=str(file))) == 1
    with pytest.raises(UserError, match=r"sample 0: \d+ tokens .* source=built-in"):
        build(name, 300, 1, path=str(file))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("kind", [*ruler_tokenizers.ALL, "embedded"])
def test_drawn_samples_fill_the_length(name, kind):
    tokenizer = small() if kind == "embedded" else ruler_tokenizers.ALL[kind]()
    for length in (512, 1024, 3000):
        for sample in build(name, length, 2, tokenizer):
            tokens = len(encode(sample, tokenizer)) + sample.max_new_tokens
            assert sample.length == tokens
            assert 0.97 * length <= tokens <= length, (length, sample.index)
            assert sample.metadata["data"] == "built-in"


@pytest.mark.parametrize("name", NAMES)
def test_built_in_samples_in_the_embedded_vocabulary(name):
    tokenizer = small()
    for length in (512, 1024):
        for sample in build(name, length, 2, tokenizer):
            text = sample.context + sample.question + sample.answer_prefix
            assert tokenizer.unk_token_id not in tokenizer.encode(text)
            assert sample.wording == "small-1"
            assert len(encode(sample, tokenizer)) + sample.max_new_tokens <= length
            assert tasks.score(sample.outputs[0], sample)["official"] == pytest.approx(1)
            assert set(tasks.score("", sample).values()) == {0.0}
            assert set(tasks.score("the road is long .", sample).values()) == {0.0}


@pytest.mark.parametrize("name", NAMES)
def test_built_in_samples_in_english(name):
    tokenizer = ruler_tokenizers.byte_level()
    many = build(name, 2500, 3, tokenizer)
    for sample in many:
        assert len(encode(sample, tokenizer)) + sample.max_new_tokens == sample.length <= 2500
        assert tasks.score(sample.outputs[0], sample) == {"official": 1.0, "strict": 1.0}
        assert set(tasks.score("", sample).values()) == {0.0}
        assert set(tasks.score("I do not know.", sample).values()) == {0.0}
    assert len({sample.context for sample in many}) == 3
    assert build(name, 2500, 1, tokenizer, first=2) == many[2:]
    assert build(name, 2500, 1, tokenizer, seed=7)[0].context != many[0].context


def test_a_tokenizer_without_chinese_characters_is_refused():
    with pytest.raises(UserError, match="not know the characters of its text"):
        build("longbook_qa_chn", 1024, 1, ruler_tokenizers.sentencepiece_like())


@pytest.mark.parametrize("name", NAMES)
def test_scores_follow_from_the_record_alone(name, tmp_path):
    samples = build(name, 2500, 2)
    tasks.write(tmp_path / "written.jsonl", samples)
    assert tasks.read(tmp_path / "written.jsonl") == samples
    for again in tasks.read(tmp_path / "written.jsonl"):
        assert tasks.score(again.outputs[0], again) == {"official": 1.0, "strict": 1.0}


@pytest.mark.parametrize("tokenizer", [None, small])
@pytest.mark.parametrize("name", ["passkey", "number_string", "kv_retrieval"])
def test_depths_sweep_evenly_and_no_sample_comes_twice(name, tokenizer):
    samples = build(name, 1024, 8, tokenizer and tokenizer())
    for index, sample in enumerate(samples):
        assert sample.depths[0] == pytest.approx(swept_depth("sweep", index), abs=0.12)
        assert sample.context.count(f"{sample.outputs[0]}") <= 2
    assert len({sample.outputs for sample in samples}) == 8
    (late,) = build(name, 1024, 1, tokenizer and tokenizer(), depth=1)
    assert late.depths[0] > 0.85
    with pytest.raises(UserError, match=r"depth='deep'; use 'sweep'"):
        build(name, depth="deep")


def test_sweep_covers_any_number_of_samples():
    depths = [swept_depth("sweep", index) for index in range(64)]
    assert sorted(depths) == [index / 64 for index in range(64)]
    assert depths[:4] == [0, 0.5, 0.25, 0.75]


def test_passkeys_never_repeat_within_a_request():
    samples = build("passkey", 300, 60)
    assert len({sample.outputs for sample in samples}) == 60
    assert all(re.fullmatch(r"\d{5}", sample.outputs[0]) for sample in samples)


def test_half_of_the_digits_of_a_number_string_repeat():
    for sample in build("number_string", 512, 5):
        (text,) = sample.outputs
        assert len(text) == 10
        assert sum(a == b for a, b in pairwise(text)) == 5


def test_numbers_to_find_are_in_the_list():
    for sample in build("math_find", 800, len(KINDS)):
        numbers = json.loads(sample.context[sample.context.index("[") :])
        kind, (label,) = sample.metadata["kind"], sample.scoring["label"]
        ordered = sorted(set(numbers))
        expected = {
            "largest": ordered[-1],
            "smallest": ordered[0],
            "second largest": ordered[-2],
            "third largest": ordered[-3],
            "median": median(numbers),
        }
        assert label == expected[kind]
        assert kind in sample.question
    assert {s.metadata["kind"] for s in build("math_find", 800, 3, kind="median")} == {"median"}
    with pytest.raises(UserError, match="kind='mean'"):
        build("math_find", kind="mean")


def test_running_values_follow_from_the_terms():
    for sample in build("math_calc", 700, 2):
        terms = re.search(r"\d+(?: [+-] \d+)+", sample.context).group().split(" ")
        value, values = int(terms[0]), []
        for sign, term in zip(terms[1::2], terms[2::2], strict=True):
            value += int(term) if sign == "+" else -int(term)
            values.append(value)
        assert values == sample.scoring["label"]
        assert tasks.score(", ".join(map(str, values[:5])), sample)["official"] == pytest.approx(
            5 / len(values)
        )


def test_code_returns_what_the_label_says():
    for calls in (1, 4):
        for sample in build("code_run", 900, 2, calls=calls):
            code = sample.context[sample.context.index("def ") :]
            scope: dict[str, object] = {}
            exec(code, scope)
            call = re.search(r"func_\d+\(-?\d+\)", sample.question).group()
            assert eval(call, scope) == sample.scoring["label"][0]
            assert sample.metadata["calls"] == calls
    with pytest.raises(UserError, match="calls=0"):
        build("code_run", calls=0)


def test_the_defect_is_in_the_function_that_the_label_names():
    for sample in build("code_debug", 900, 3):
        name, letter = sample.scoring["label"]
        code = sample.context[sample.context.index("def ") :]
        scope: dict[str, object] = {}
        exec(code, scope)
        with pytest.raises(NameError):
            scope[name]([1])
        for other in sample.scoring["options"]:
            if other != name:
                assert isinstance(scope[other]([1]), int)
        assert f"{letter}. {name}\n" in sample.question


def test_strict_scores_refuse_answers_that_name_several():
    def scored(name, answer):
        sample = tasks.build(
            f"infinitebench/{name}", ruler_tokenizers.byte_level(), 2500, 1, source="built-in"
        )[0]
        return tasks.score(answer(sample), sample)

    both = {"official": 1.0, "strict": 0.0}
    assert scored("passkey", lambda s: f"{s.outputs[0]} or 12345") == both
    assert scored("math_find", lambda s: f"{s.outputs[0]}, 999") == both
    other = "00000000-0000-4000-8000-000000000000"
    assert scored("kv_retrieval", lambda s: f"{s.outputs[0]} {other}") == both
    assert scored("math_calc", lambda s: f"{s.outputs[0]}, 5") == both
    letters = {"A": "B", "B": "A", "C": "A", "D": "A"}

    def two_letters(sample):
        letter = sample.scoring["label"][1]
        return f"{letter} or {letters[letter]}"

    assert scored("longbook_choice_eng", two_letters) == both


def points(name, file):
    """Sum of the official scores of a prediction file, its labels put into samples."""
    found = 0.0
    for prediction in read_predictions(file).rows:
        label = prediction.references
        texts = label if isinstance(label, list) else [label]
        sample = tasks.Sample(
            tasks.find(f"infinitebench/{name}").name, 0, "", "", "", tuple(map(str, texts)), 1, 0,
            0, scoring={"label": label},
        )  # fmt: skip
        found += tasks.score(prediction.text, sample)["official"]
    return found


def test_predictions_score_the_same_through_samples(golden, tmp_path):
    for case in golden("benchmarks", "infinitebench_metric"):
        inputs = case["inputs"]
        file = tmp_path / f"{inputs['model']}_{inputs['task']}.jsonl"
        rows = [
            {"id": n, "prediction": prediction, "ground_truth": inputs["label"]}
            for n, prediction in enumerate([inputs["pred"], "", inputs["pred"]])
        ]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        expected = 2 * case["expected"]["value"]
        assert points(inputs["task"], file) == pytest.approx(expected), case["id"]


def test_published_predictions_score_the_same_through_samples(golden, published_files):
    for case in golden("benchmarks", "infinitebench_file"):
        found = points(case["inputs"]["task"], published_files.parent / case["inputs"]["file"])
        assert found == pytest.approx(case["expected"]["sum"], abs=1e-9), case["id"]
