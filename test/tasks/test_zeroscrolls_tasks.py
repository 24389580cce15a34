"""ZeroSCROLLS: official rows, cutting of documents, the leaderboard's file, rows of our own."""

from __future__ import annotations

import csv
import json
import re

import pytest
import ruler_tokenizers
from transformers import AutoTokenizer

from catekv import tasks
from catekv.errors import UserError
from catekv.models import embedded
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.zeroscrolls import leaderboard
from catekv.tasks.families.zeroscrolls.family import FAMILY
from catekv.tasks.metrics import zeroscrolls

NAMES = [task.name.removeprefix("zeroscrolls/") for task in FAMILY.tasks]
CUT = "... [cut]\n\n"
OUTPUTS = {"quality": "(B) yes", "space_digest": "60%", "book_sum_sort": "3, 1, 2"}


def row(name, document="the harbour is quiet. " * 50, query="Who?", **fields):
    """A row in the official layout: instruction, document, query, beginning of the answer."""
    before = f"Do something about {name}.\n\nDocument:\n"
    asked = f"Question:\n{query}\n\n" if query else ""
    text = f"{before}{document}\n\n{asked}Answer:\n"
    start = len(before) + len(document) + 2
    whole = {
        "id": "abc",
        "pid": "abc_0",
        "input": text,
        "output": OUTPUTS.get(name, "The mayor left."),
        "document_start_index": len(before),
        "document_end_index": len(before) + len(document),
        "query_start_index": start,
        "query_end_index": start + len(asked),
        "truncation_seperator": CUT,
        "inner_docs_start_indices": [],
    }
    return {**whole, **fields}


@pytest.fixture
def written(tmp_path):
    """``written("qasper/validation.jsonl", row, ...)``: an official file."""

    def write(name, *rows):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(json.dumps(one) for one in rows) + "\n", encoding="utf-8")
        return file

    return write


def build(name, length, count=2, tokenizer=None, **options):
    tokenizer = tokenizer or ruler_tokenizers.byte_level()
    return tasks.build(f"zeroscrolls/{name}", tokenizer, length, count, **options)


def test_all_ten_tasks_exist_and_the_unverified_are_marked():
    assert set(NAMES) == set(zeroscrolls.METRICS)
    marked = {name for name in NAMES if tasks.metric(f"zeroscrolls/{name}").endswith("unverified")}
    assert marked == set(zeroscrolls.UNVERIFIED)


@pytest.mark.parametrize("name", NAMES)
def test_official_prompts_are_used_unchanged(name, written):
    given = row(name)
    (sample,) = tasks.read(written(f"{name}/validation.jsonl", given))
    assert sample.task == f"zeroscrolls/{name}"
    assert sample.context + sample.question + sample.answer_prefix == given["input"]
    assert sample.question == "Question:\nWho?\n\n"
    assert sample.answer_prefix == "Answer:\n"
    assert sample.wording == "official-file"
    assert sample.metadata["id"] == "abc"
    assert ("metric_note" in sample.metadata) == (name in zeroscrolls.UNVERIFIED)
    assert tasks.score(sample.outputs[0], sample)["official"] == pytest.approx(1)
    assert set(tasks.score("", sample).values()) == {0.0}


def test_answer_prefixes_keep_their_white_space_behind_a_chat_template(written):
    file = written("qasper/validation.jsonl", row("qasper"))
    tokenizer = ruler_tokenizers.chat()
    (sample,) = build("qasper", 0, 1, tokenizer, path=str(file))
    text = tokenizer.decode(encode(sample, tokenizer).ids)
    assert text.endswith("<|assistant|>Answer:\n")
    assert text.count("<s>") == 1


def test_summaries_have_no_query(written):
    given = row("gov_report", query="")
    (sample,) = tasks.read(written("gov_report/validation.jsonl", given))
    assert sample.question == ""
    assert sample.answer_prefix == "Answer:\n"
    assert sample.group == ""


def test_only_the_end_of_the_document_is_cut(written):
    document = " ".join(f"word{n}" for n in range(1000))
    given = row("qasper", document)
    file = str(written("qasper/validation.jsonl", given))
    for tokenizer in (ruler_tokenizers.byte_level(), ruler_tokenizers.sentencepiece_like()):
        (whole,) = build("qasper", 0, 1, tokenizer, path=file)
        (sample,) = build("qasper", 800, 1, tokenizer, path=file)
        assert 790 <= sample.length <= 800
        assert len(encode(sample, tokenizer)) + sample.max_new_tokens == sample.length
        kept = sample.context.removesuffix(CUT)
        assert kept != sample.context
        assert whole.context.startswith(kept)
        assert sample.question == whole.question
        assert sample.answer_prefix == whole.answer_prefix
        assert (whole.metadata["cut_tokens"], whole.metadata.get("cut")) == (0, None)
        assert sample.metadata["cut"] == "end"
        assert sample.metadata["cut_tokens"] >= whole.length - sample.length


def test_a_limit_without_room_for_the_document_is_refused(written):
    file = str(written("qasper/validation.jsonl", row("qasper")))
    with pytest.raises(UserError, match="no room for the text within 140 tokens"):
        build("qasper", 140, 1, path=file)


def test_rows_with_one_id_are_one_question_with_several_answers(written):
    first, second = row("squality"), row("squality", output="Nobody left.", pid="abc_1")
    other = row("squality", id="xyz", query="When?")
    one, two = tasks.read(written("squality/validation.jsonl", first, second, other))
    assert one.outputs == ("The mayor left.", "Nobody left.")
    assert (two.index, two.metadata["id"]) == (1, "xyz")
    for answer in one.outputs:
        assert tasks.score(answer, one)["official"] == pytest.approx(1)
    assert one.context == two.context
    assert one.group == two.group != ""


def test_different_rows_with_one_id_are_refused(written):
    file = written("qasper/validation.jsonl", row("qasper"), row("qasper", query="When?"))
    with pytest.raises(UserError, match=r"validation\.jsonl, .*two different rows.*'abc'"):
        tasks.read(file)


@pytest.mark.parametrize("output", [None, ""])
def test_test_rows_are_read_for_prediction_and_refused_for_scoring(output, written, tmp_path):
    file = written("qasper/test.jsonl", row("qasper", output=output))
    (sample,) = tasks.read(file)
    assert sample.outputs == ()
    with pytest.raises(UserError, match="only the leaderboard can score"):
        tasks.score("The mayor", sample)
    with pytest.raises(UserError, match="has no answer to score against"):
        build("qasper", 0, 1, path=str(file))
    missing = leaderboard.write(tmp_path / "out.csv", [(sample, ' The "mayor", I think\n')])
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["Task", "ID", "Prediction"], ["qasper", "abc", 'The "mayor", I think']]
    assert set(missing) == set(NAMES) - {"qasper"}


def test_the_leaderboard_takes_official_rows_once(written, tmp_path):
    (sample,) = tasks.read(written("qasper/test.jsonl", row("qasper")))
    with pytest.raises(UserError, match="two predictions"):
        leaderboard.write(tmp_path / "out.csv", [(sample, "a"), (sample, "b")])
    (drawn,) = build("qasper", 1500, 1, source="built-in")
    with pytest.raises(UserError, match="not of an official"):
        leaderboard.write(tmp_path / "out.csv", [(drawn, "a")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        leaderboard.write(tmp_path / "file" / "out.csv", [(sample, "a")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"document_end_index": 10**6}, "document_end_index is 1000000"),
        ({"document_end_index": None}, "document_end_index is None"),
        ({"query_start_index": 3}, "do not follow each other"),
        ({"document_start_index": True}, "document_start_index is True"),
        ({"input": 5}, "field 'input' is 5, expected a text"),
        ({"id": ["b"]}, "field 'id' is .*, expected a text or a whole number"),
        ({"id": None}, "field 'id' is None, expected a text or a whole number"),
        ({"truncation_seperator": 3}, "field 'truncation_seperator' is 3, expected a text"),
        ({"output": 12}, "field 'output' is 12, expected at least one answer"),
        ({"output": [None]}, "field 'output' holds the answer None, which is no text"),
    ],
)
def test_bad_rows_name_file_and_line(fields, message, written):
    file = written(
        "musique/validation.jsonl", row("musique"), row("musique", **{"id": "b", **fields})
    )
    with pytest.raises(UserError, match=rf"validation\.jsonl, line 2: .*{message}"):
        tasks.read(file)
    with pytest.raises(UserError, match=rf"validation\.jsonl, line 2: .*{message}"):
        build("musique", 0, 2, path=str(file))


def test_missing_fields_and_unreadable_references_are_named(written):
    incomplete = row("musique")
    del incomplete["query_end_index"]
    with pytest.raises(UserError, match=r"line 1: field 'query_end_index' is missing"):
        tasks.read(written("musique/validation.jsonl", incomplete))
    bad = row("space_digest", output="many")
    with pytest.raises(UserError, match=r"line 1: .*'many' holds no percentage"):
        tasks.read(written("space_digest/validation.jsonl", bad))


def test_files_are_found_in_the_data_folder(written, tmp_path, monkeypatch):
    written("zeroscrolls/qasper/validation.jsonl", row("qasper"))
    monkeypatch.setenv("CATEKV_DATA", str(tmp_path))
    (sample,) = build("qasper", 0, 5)
    assert re.fullmatch(r"file:validation\.jsonl:[0-9a-f]{16}", sample.metadata["data"])
    monkeypatch.delenv("CATEKV_DATA")
    with pytest.raises(UserError, match=r"tau/zero_scrolls.*source=built-in") as raised:
        build("qasper", 0, 5)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_built_in_samples_in_english(name, tmp_path):
    many = build(name, 2500, 3, source="built-in")
    tasks.write(tmp_path / "written.jsonl", many)
    assert tasks.read(tmp_path / "written.jsonl") == many
    for sample in tasks.read(tmp_path / "written.jsonl"):
        tokenizer = ruler_tokenizers.byte_level()
        assert len(encode(sample, tokenizer)) + sample.max_new_tokens == sample.length <= 2500
        assert sample.wording == "english-1"
        assert sample.metadata["data"] == "built-in"
        oracle = tasks.score(sample.outputs[0], sample)
        assert oracle == {"official": pytest.approx(1), "strict": pytest.approx(1)}
        assert set(tasks.score("", sample).values()) == {0.0}
    assert len({sample.context for sample in many}) == 3
    assert build(name, 2500, 1, source="built-in", first=2) == many[2:]


@pytest.mark.parametrize("name", NAMES)
def test_built_in_samples_in_the_embedded_vocabulary(name):
    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    for length in (512, 1024):
        samples = build(name, length, 2, tokenizer, source="built-in")
        assert build(name, length, 2, tokenizer, source="built-in") == samples
        for sample in samples:
            text = sample.context + sample.question + sample.answer_prefix
            assert tokenizer.unk_token_id not in tokenizer.encode(text)
            assert len(encode(sample, tokenizer)) + sample.max_new_tokens <= length
            assert tasks.score(sample.outputs[0], sample)["official"] == pytest.approx(1)
            assert set(tasks.score("", sample).values()) == {0.0}


def test_built_in_percentages_and_orders_are_those_of_the_text():
    for sample in build("space_digest", 1500, 2, source="built-in"):
        reviews = sample.context.split("Review ")[1:]
        signs = ("spotless", "helped", "delicious", "slept", "certainly", "wonderful")
        good = sum(any(sign in review for sign in signs) for review in reviews)
        assert sample.outputs == (f"{round(100 * good / len(reviews))}%",)
    for sample in build("book_sum_sort", 1500, 2, source="built-in"):
        ages = re.findall(r"Summary (\d): .*? is (\d+) years old", sample.context)
        ranked = sorted(ages, key=lambda pair: int(pair[1]))
        assert sample.outputs == (", ".join(number for number, _ in ranked),)


def test_strict_scores_refuse_answers_that_name_several(written):
    def scored(name, answer):
        (sample,) = tasks.read(written(f"{name}/validation.jsonl", row(name)))
        return tasks.score(answer, sample)

    assert scored("quality", "(B), not (A)") == {"official": 1, "strict": 0}
    assert scored("quality", "(B)") == {"official": 1, "strict": 1}
    assert scored("space_digest", "60% or 90%") == {"official": 1, "strict": 0}
    assert scored("book_sum_sort", "The order is 3, 1, 2") == {"official": 1, "strict": 0}
    assert scored("book_sum_sort", "3, 1, 2") == {"official": 1, "strict": 1}


def test_real_questions_over_several_paragraphs_fit_the_layout(published_files, written):
    file = published_files / "qa" / "musique_train_sample.json"
    items = json.loads(file.read_text(encoding="utf-8"))[:5]
    rows = [
        row(
            "musique",
            "\n\n".join(part["paragraph_text"] for part in item["paragraphs"]),
            item["question"],
            id=item["id"],
            output=[item["answer"], *item["answer_aliases"]],
        )
        for item in items
    ]
    path = str(written("musique/validation.jsonl", *rows))
    samples = build("musique", 1500, 5, path=path)
    assert len(samples) == 5
    for sample, item in zip(samples, items, strict=True):
        assert sample.length <= 1500
        assert item["question"] in sample.question
        assert tasks.score(item["answer"], sample)["official"] == 1
