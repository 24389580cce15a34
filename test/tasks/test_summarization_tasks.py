"""Summaries: rows as published, few-shot prompts, both kinds of ROUGE, rows of our own."""

from __future__ import annotations

import csv
import json

import pytest
import ruler_tokenizers
from transformers import AutoTokenizer

from catekv import tasks
from catekv.errors import UserError
from catekv.models import embedded
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.summarization.family import FAMILY
from catekv.tasks.rows import sources

NAMES = [task.name.removeprefix("summarization/") for task in FAMILY.tasks]
TEXT = "The mayor of the town left on Monday. Nobody knows why. " * 20
SUMMARY = "The mayor left.\nNobody knows why."
ROWS = {
    "cnn_dailymail": {"article": TEXT, "highlights": SUMMARY, "id": "a1"},
    "xsum": {"document": TEXT, "summary": SUMMARY, "id": "a1"},
    "gov_report": {"report": TEXT, "summary": SUMMARY, "id": "a1"},
}
REQUEST = "Put it into one sentence."


def shots(count, article=TEXT):
    """A prompt of solved examples and one article, as few-shot files have it."""
    solved = [f"###\nArticle: {n} {TEXT}\n\n{REQUEST}\nSummary {n}.\n\n" for n in range(count)]
    return "".join(solved) + f"###\nArticle: {article}\n\n{REQUEST}\n"


def few_shot(count=3, **fields):
    whole = {
        "article": shots(count),
        "summary_gt": "The mayor left.",
        "stop": ["###"],
        "max_tokens": 50,
        "temperature": 0.3,
        "top_p": 1,
        "n": 1,
    }
    return {**whole, **fields}


@pytest.fixture
def written(tmp_path):
    """``written("xsum.jsonl", row, ...)``: a file with rows."""

    def write(name, *rows):
        file = tmp_path / name
        if file.suffix == ".csv":
            with file.open("w", encoding="utf-8", newline="") as stream:
                table = csv.DictWriter(stream, rows[0])
                table.writeheader()
                table.writerows(rows)
            return file
        lines = [json.dumps(one) for one in rows]
        text = "\n".join(lines) if file.suffix == ".jsonl" else f"[{','.join(lines)}]"
        file.write_text(text + "\n", encoding="utf-8")
        return file

    return write


def build(name, length, count=2, tokenizer=None, **options):
    tokenizer = tokenizer or ruler_tokenizers.byte_level()
    return tasks.build(f"summarization/{name}", tokenizer, length, count, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_published_rows_are_read_in_every_form(name, form, written, tmp_path):
    if form == "parquet":
        datasets = pytest.importorskip("datasets", reason="it reads Parquet files")
        file = tmp_path / f"{name}.parquet"
        datasets.Dataset.from_list([ROWS[name]]).to_parquet(str(file))
    else:
        file = written(f"{name}.{form}", ROWS[name])
    (sample,) = build(name, 0, 5, path=str(file))
    assert TEXT in sample.context
    assert sample.outputs == (SUMMARY,)
    assert sample.metadata["id"] == "a1"
    assert sample.wording == "english-1"
    assert sample.max_new_tokens == tasks.max_new_tokens(f"summarization/{name}")


def test_reading_recognises_rows_by_their_fields(written):
    for name in NAMES:
        (sample,) = tasks.read(written(f"{name}_test.jsonl", ROWS[name]))
        assert sample.task == f"summarization/{name}"


def test_rows_of_longbench_are_government_reports(written):
    row = {"input": "", "context": TEXT, "answers": [SUMMARY, "Gone."], "_id": "x"}
    (sample,) = tasks.read(written("gov_report.jsonl", row), "summarization/gov_report")
    assert sample.outputs == (SUMMARY, "Gone.")
    assert sample.metadata["id"] == "x"
    assert TEXT in sample.context


def test_the_end_of_a_long_article_is_cut(written):
    article = " ".join(f"word{n}" for n in range(1500))
    row = {"document": article, "summary": SUMMARY, "id": "1"}
    file = str(written("xsum.jsonl", row))
    tokenizer = ruler_tokenizers.byte_level()
    (whole,) = build("xsum", 0, 1, path=file)
    (sample,) = build("xsum", 900, 1, path=file)
    assert len(encode(sample, tokenizer)) + 64 == sample.length <= 900
    assert sample.length >= 890
    assert whole.context.startswith(sample.context.rstrip())
    assert sample.question == whole.question
    assert sample.metadata["cut_tokens"] == pytest.approx(whole.length - 900, abs=10)


def test_few_shot_prompts_stay_as_they_are(written):
    file = written("xsum_few.jsonl", few_shot(), few_shot(stop="\n\n"))
    first, second = tasks.read(file)
    assert first.task == "summarization/xsum"
    assert first.context + first.question + first.answer_prefix == few_shot()["article"]
    assert first.question == f"\n\n{REQUEST}\n"
    assert (first.stop, second.stop) == (("###",), ("\n\n",))
    assert first.max_new_tokens == 50
    assert first.wording == "official-file"
    assert first.metadata["settings_not_used"] == {"temperature": 0.3, "top_p": 1, "n": 1}


def test_few_shot_prompts_are_never_put_into_a_chat_template(written):
    file = str(written("xsum_few.jsonl", few_shot()))
    tokenizer = ruler_tokenizers.chat()
    (sample,) = build("xsum", 0, 1, tokenizer, path=file)
    ids = encode(sample, tokenizer).ids
    assert tokenizer.decode(ids) == "<s>" + few_shot()["article"]
    assert sample.length == len(ids) + 50


def test_the_first_examples_go_where_a_few_shot_prompt_is_too_long(written):
    file = str(written("xsum_few.jsonl", few_shot(4)))
    (whole,) = build("xsum", 0, 1, path=file)
    limit = whole.length - 10
    (sample,) = build("xsum", limit, 1, path=file)
    assert sample.length <= limit
    assert sample.context + sample.question == "###" + few_shot(4)["article"].split("###", 2)[2]
    assert sample.metadata["cut_tokens"] == whole.length - sample.length
    with pytest.raises(UserError, match="without any example, 100 are allowed"):
        build("xsum", 100, 1, path=file)


def test_an_unclear_end_of_the_context_is_marked_not_guessed(written):
    file = written("xsum_few.jsonl", few_shot(article=shots(3, "One.\n\nTwo.")))
    (clear,) = tasks.read(file)
    assert clear.question == f"\n\n{REQUEST}\n"
    odd = few_shot()["article"] + "\n\nSomething that no example says."
    (sample,) = tasks.read(written("xsum_odd.jsonl", few_shot(article=odd)))
    assert sample.metadata["query_aware_only"] is True
    assert (sample.context, sample.question) == (odd, "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"article": TEXT}, "no text with a summary"),
        ({"document": "", "summary": SUMMARY}, "expected a text and its summary"),
        ({"document": TEXT, "summary": None}, "expected a text and its summary"),
        ({"context": TEXT, "answers": [3]}, "expected a text and its summary, found 3"),
        ({"context": TEXT, "answers": SUMMARY}, "field 'answers' is .*, expected at least one"),
        ({**ROWS["xsum"], "id": [1]}, r"field 'id' is \[1\], expected a text or a whole number"),
        (few_shot(max_tokens=0), "field 'max_tokens' is 0, expected a whole number from 1"),
        (few_shot(max_tokens="50"), "field 'max_tokens' is '50', expected a whole number from 1"),
        (few_shot(stop=3), "field 'stop' is 3, expected a text or a list of texts"),
        (few_shot(stop=["###", ""]), "field 'stop' is .*, expected a text or a list of texts"),
        (few_shot(stop=""), "field 'stop' is '', expected a text or a list of texts"),
    ],
)
def test_bad_rows_name_file_and_line(row, message, written):
    file = written("xsum.jsonl", ROWS["xsum"], row)
    with pytest.raises(UserError, match=rf"xsum\.jsonl, line 2: .*{message}"):
        tasks.read(file, "summarization/xsum")
    with pytest.raises(UserError, match=rf"xsum\.jsonl, line 2: .*{message}"):
        build("xsum", 0, 2, path=str(file))


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_are_one_sentence(name, monkeypatch):
    def no_network(hub):
        raise UserError("the hub cannot be reached from here")

    monkeypatch.setattr(sources, "hub_rows", no_network)
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    with pytest.raises(UserError, match=r"download .*path=FILE.*source=built-in") as raised:
        build(name, 0, 1)
    assert "\n" not in str(raised.value)


def test_rows_come_from_the_hub_by_name(monkeypatch):
    asked = []

    def rows(hub):
        asked.append(hub)
        return sources.Rows([ROWS["cnn_dailymail"]], "hub:somewhere@1")

    monkeypatch.setattr(sources, "hub_rows", rows)
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    (sample,) = build("cnn_dailymail", 0, 3)
    assert asked == [("abisee/cnn_dailymail", "3.0.0", "test")]
    assert sample.metadata["data"] == "hub:somewhere@1"


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_of_rouge_are_in_the_scores(name, written):
    (sample,) = tasks.read(written(f"{name}.jsonl", ROWS[name]), f"summarization/{name}")
    scores = tasks.score("Nobody knows why. The mayor left.", sample)
    assert scores["rouge1"] == scores["rougeLsum"] == 1
    assert scores["rougeL"] < 1
    assert scores["rouge_l_pltrdy"] != scores["rougeL"]
    official = scores["rouge_l_pltrdy" if name == "gov_report" else "rougeLsum"]
    assert scores["official"] == scores["strict"] == official
    assert tasks.metric(f"summarization/{name}") in scores
    assert set(tasks.score("", sample).values()) == {0.0}
    assert tasks.score(SUMMARY, sample)["official"] == pytest.approx(1)


def test_sentences_are_put_on_lines_unless_the_lines_count_as_given(written):
    one_line = SUMMARY.replace("\n", " ")
    (sample,) = tasks.read(written("xsum.jsonl", {**ROWS["xsum"], "summary": one_line}))
    scores = tasks.score("Nobody knows why. The mayor left.", sample)
    assert scores["rougeLsum"] == 1
    assert scores["rougeLsum_as_given"] == scores["rougeL"] < 1


@pytest.mark.parametrize("name", NAMES)
def test_built_in_samples_in_english(name, tmp_path):
    many = build(name, 1500, 3, source="built-in")
    tasks.write(tmp_path / "written.jsonl", many)
    assert tasks.read(tmp_path / "written.jsonl") == many
    for sample in tasks.read(tmp_path / "written.jsonl"):
        assert sample.length <= 1500
        assert tasks.score(sample.outputs[0], sample)["official"] == pytest.approx(1)
        # the text says the same in other words, so copying its start is not enough
        assert tasks.score(sample.context[:300], sample)["official"] < 0.9
    assert len({sample.context for sample in many}) == 3
    assert build(name, 1500, 1, source="built-in", first=2) == many[2:]


@pytest.mark.parametrize("name", NAMES)
def test_built_in_samples_in_the_embedded_vocabulary(name):
    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    for length in (512, 1024):
        for sample in build(name, length, 2, tokenizer, source="built-in"):
            text = sample.context + sample.question + sample.answer_prefix
            assert tokenizer.unk_token_id not in tokenizer.encode(text)
            assert len(encode(sample, tokenizer)) + sample.max_new_tokens <= length
            assert tasks.score(sample.outputs[0], sample)["official"] == pytest.approx(1)
            assert set(tasks.score("", sample).values()) == {0.0}


def test_reference_scores_come_out_of_a_few_shot_file(golden, written):
    for case in golden("benchmarks", "rouge"):
        inputs, expected = case["inputs"], case["expected"]
        (sample,) = tasks.read(written("xsum.jsonl", few_shot(summary_gt=inputs["ref"])))
        assert (sample.task, sample.stop, sample.max_new_tokens) == (
            "summarization/xsum", ("###",), 50,
        )  # fmt: skip
        scores = tasks.score(inputs["hyp"], sample)
        for kind, parts in expected["rouge_score_stem"].items():
            if kind != "rougeLsum":
                assert scores[kind] == pytest.approx(parts["f"], abs=1e-9), (case["id"], kind)
        pltrdy = expected.get("pltrdy_rouge", {"rouge-l": {"f": 0}})["rouge-l"]["f"]
        assert scores["rouge_l_pltrdy"] == pytest.approx(pltrdy, abs=1e-9), case["id"]


def test_prefix_baseline_on_a_real_few_shot_file(golden, published_files):
    """Reading and scoring together give the reference numbers of rouge_score and rouge."""
    samples = tasks.read(published_files / "summarization" / "xsum_qhitter.jsonl")
    assert len(samples) == 100
    assert all(sample.task == "summarization/xsum" for sample in samples)
    assert all(sample.stop == ("###",) and sample.max_new_tokens == 64 for sample in samples)
    assert not any(sample.metadata.get("query_aware_only") for sample in samples)
    for case in golden("benchmarks", "xsum_prefix"):
        sample, expected = samples[case["inputs"]["row"]], case["expected"]
        text = sample.context + sample.question
        scores = tasks.score(text.rsplit("Article:", 1)[1].strip()[:300], sample)
        wanted = dict(expected["scores"])
        # the reference numbers take the lines of the texts as they are
        assert scores["rougeLsum_as_given"] == pytest.approx(wanted.pop("rougeLsum"), abs=1e-6)
        for kind, value in wanted.items():
            assert scores[kind] == pytest.approx(value, abs=1e-6), (case["id"], kind)
        assert scores["rouge_l_pltrdy"] == pytest.approx(expected["pltrdy_rouge_l_f"], abs=1e-6)
