"""LongBench files: the published layouts, real ones, prompt files of the user, wrong rows."""

from __future__ import annotations

import json

import pytest
from longbench_rows import LEFT_OUT, choice_row, row, write_rows
from ruler_tokenizers import byte_level, chat

from catekv import tasks
from catekv.errors import UserError
from catekv.evaluation.predictions.scores import read_predictions, rescore
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.longbench.table import TASKS, facts
from catekv.tasks.families.longbench.wording import PARTS
from catekv.tasks.metrics import longbench
from catekv.tasks.rows import sources

TEMPLATE = "Before.\n{context}\nBetween, {input}\nAfter:"


@pytest.fixture
def prompts(tmp_path):
    """``prompts(template)``: a file of format strings with the same one for every task."""

    def write(template=TEMPLATE):
        file = tmp_path / "prompts.json"
        file.write_text(json.dumps(dict.fromkeys(TASKS, template)), encoding="utf-8")
        return str(file)

    return write


# --- rows of v1 and -E ------------------------------------------------------------------------
@pytest.mark.parametrize("name", TASKS)
def test_a_row_keeps_context_question_and_references(name, tmp_path):
    file = write_rows(tmp_path / f"{name}.jsonl", row(name, input="INPUT"))
    (sample,) = tasks.read(file)
    assert sample.task == f"longbench/{name}"
    assert sample.context == PARTS[name].context + row(name)["context"]
    assert sample.question.count("INPUT") == PARTS[name].question.count("{input}")
    assert sample.outputs == tuple(row(name)["answers"])
    assert sample.metric == facts(name).metric
    assert sample.wording == "longbench-1"
    assert (sample.metadata["id"], sample.metadata["length"]) == ("a1", 804)
    assert sample.metadata["data"].startswith(f"file:{name}.jsonl:")
    classes = {"all_classes": ["fruit", "metal"]} if sample.metric == "classification" else None
    code = {"backend": "difflib"} if sample.metric == "edit_similarity" else {}
    assert sample.scoring == (classes or code)


def test_rows_of_e_go_into_buckets_by_their_length(tmp_path):
    rows = [row("qasper", length=length) for length in (3999, 4000, 7999, 8000)]
    samples = tasks.read(write_rows(tmp_path / "qasper_e.jsonl", *rows))
    assert [sample.task for sample in samples] == ["longbench_e/qasper"] * 4
    assert [s.metadata["bucket"] for s in samples] == ["0-4k", "4-8k", "4-8k", "8k+"]


def test_a_folder_of_files_serves_every_task(tmp_path, monkeypatch):
    (tmp_path / "longbench").mkdir()
    for name in ("qasper", "trec"):
        write_rows(tmp_path / "longbench" / f"{name}.jsonl", row(name), row(name, _id="a2"))
    write_rows(tmp_path / "longbench" / "qasper_e.jsonl", row("qasper", _id="a3"))
    monkeypatch.setenv("CATEKV_DATA", str(tmp_path))
    found = tasks.build("longbench/qasper", chat(), 4096, 9)
    assert [sample.metadata["id"] for sample in found] == ["a1", "a2"]
    (later,) = tasks.build("longbench/trec", chat(), 4096, 9, first=1)
    assert (later.index, later.metadata["id"]) == (1, "a2")
    (even,) = tasks.build("longbench_e/qasper", chat(), 0, 9)
    assert (even.metadata["id"], even.metadata["bucket"]) == ("a3", "0-4k")
    assert tasks.build("longbench_e/qasper", chat(), 0, 9, path=str(tmp_path / "longbench"))
    with pytest.raises(UserError, match=r"holds none of qasper_e.jsonl, data/qasper_e.jsonl"):
        tasks.build("longbench_e/qasper", chat(), 0, 9, path=str(empty_folder(tmp_path)))


def empty_folder(parent):
    folder = parent / "empty"
    folder.mkdir()
    return folder


def unreachable(hub):
    raise UserError(f"{hub.repository} cannot be loaded: no network")


def test_missing_data_are_named_with_what_to_do(monkeypatch):
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    monkeypatch.setattr(sources, "hub_rows", unreachable)
    with pytest.raises(UserError) as raised:
        tasks.build("longbench/qasper", chat(), 4096, 1)
    message = str(raised.value)
    assert "longbench/qasper: its data are not here" in message
    assert "THUDM/LongBench cannot be loaded: no network" in message
    assert "data.zip" in message
    assert "path=FILE" in message
    assert "qasper.jsonl" in message
    assert "source=built-in" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": LEFT_OUT}, "field 'context' is missing"),
        ({"input": 5}, "field 'input' is 5, expected a text"),
        ({"answers": []}, "field 'answers' is not a list with at least one answer"),
        ({"answers": [None]}, "field 'answers' holds None, expected a text"),
        ({"all_classes": None}, "field 'all_classes' is not a list with the names of the classes"),
        ({"length": "long"}, "field 'length' is 'long', expected a number of words"),
        ({"dataset": "lsht"}, "the row belongs to lsht, not to trec"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(fields, message, tmp_path):
    file = write_rows(tmp_path / "trec.jsonl", row("trec"), row("trec", **fields))
    with pytest.raises(UserError, match=rf"trec.jsonl, line 2: {message}"):
        tasks.read(file)
    with pytest.raises(UserError, match=rf"trec.jsonl, line 2: {message}"):
        tasks.build("longbench/trec", chat(), 4096, 2, path=str(file))


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (LEFT_OUT, "field 'length' is missing"),
        (None, "field 'length' is None, expected a number of words"),
        (-1, "field 'length' is -1, expected a number of words"),
    ],
)
def test_e_needs_the_length_of_a_row(length, message, tmp_path):
    file = write_rows(tmp_path / "qasper_e.jsonl", row("qasper", length=length))
    with pytest.raises(UserError, match=rf"line 1: {message}"):
        tasks.read(file)


def test_a_reference_that_names_no_paragraph_is_refused_when_it_is_read(tmp_path):
    name = "passage_retrieval_en"
    file = write_rows(tmp_path / f"{name}.jsonl", row(name, answers=["3"]))
    with pytest.raises(UserError, match=r"line 1: reference '3' names no paragraph"):
        tasks.read(file)


# --- official prompt files --------------------------------------------------------------------
def test_an_official_prompt_ends_its_context_part_right_after_the_context(prompts, tmp_path):
    file = write_rows(tmp_path / "qasper.jsonl", row("qasper", context="CONTEXT", input="INPUT"))
    (sample,) = tasks.read(file, prompts=prompts())
    assert sample.context == "Before.\nCONTEXT"
    assert (sample.question, sample.answer_prefix) == ("\nBetween, INPUT\nAfter:", "")
    assert sample.wording == "official-file"


def test_braces_and_markers_of_a_document_stay_as_they_are(prompts, tmp_path):
    text = "a {input} and {context} and {0} and {{x}} and $Q$"
    file = write_rows(tmp_path / "qasper.jsonl", row("qasper", context=text, input="{context}?"))
    (sample,) = tasks.read(file, prompts=prompts("Keep {{braces}}: {context}|{input}"))
    assert sample.context == "Keep {braces}: " + text
    assert sample.question == "|{context}?"
    (own,) = tasks.read(write_rows(tmp_path / "hotpotqa.jsonl", row("hotpotqa", context=text)))
    assert text in own.context


def test_the_official_answer_lengths_are_taken_from_their_file(prompts, tmp_path):
    file = write_rows(tmp_path / "qasper.jsonl", row("qasper"))
    lengths = tmp_path / "lengths.json"
    lengths.write_text('{"qasper": 77}')
    (sample,) = tasks.read(file, max_lengths=str(lengths))
    assert sample.max_new_tokens == 77
    lengths.write_text('{"qasper": "many"}')
    with pytest.raises(UserError, match="the new tokens of qasper are 'many'"):
        tasks.read(file, max_lengths=str(lengths))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("only {input}", "needs the field {context} exactly once"),
        ("{context} {", "is no format string"),
        (7, "is not a text"),
    ],
)
def test_an_unusable_prompt_file_is_refused(template, message, prompts, tmp_path):
    file = write_rows(tmp_path / "qasper.jsonl", row("qasper"))
    with pytest.raises(UserError, match=message):
        tasks.read(file, prompts=prompts(template))


def test_a_prompt_with_a_field_that_no_row_has_is_refused(prompts, tmp_path):
    file = write_rows(tmp_path / "qasper.jsonl", row("qasper"))
    with pytest.raises(UserError, match=r"line 1: the prompt asks for the field {topic}"):
        tasks.read(file, prompts=prompts("{context} {topic}"))


# --- MiniLongBench ----------------------------------------------------------------------------
def mini(tmp_path, prompt, task="qasper", gold=("red",)):
    file = tmp_path / f"MiniLongBench_{task}.json"
    entry = {"origin_prompt": prompt, "prediction": "red", "gold": list(gold), "time": 1.0}
    file.write_text(json.dumps({"0": entry}), encoding="utf-8")
    return file


def test_a_finished_prompt_is_query_aware_unless_its_template_is_known(prompts, tmp_path):
    file = mini(tmp_path, "Before.\nTHE TEXT\nBetween, a question?\nAfter:")
    (sample,) = tasks.read(file)
    assert sample.task == "longbench/qasper"
    assert sample.metadata["query_aware_only"]
    assert (sample.context[-6:], sample.question) == ("After:", "")
    (known,) = tasks.read(file, prompts=prompts())
    assert "query_aware_only" not in known.metadata
    assert known.context == "Before.\nTHE TEXT"
    assert known.question == "\nBetween, a question?\nAfter:"


@pytest.mark.parametrize(
    "prompt",
    [
        "Before.\nA\nBetween, x\nBetween, a question?\nAfter:",
        "Before.\nA\nbetween, a question?\nAfter:",
        "Else.\nA\nBetween, a question?\nAfter:",
        "Before.\nA\nBetween, a question?\nAfterwards",
    ],
)
def test_no_boundary_is_guessed(prompt, prompts, tmp_path):
    (sample,) = tasks.read(mini(tmp_path, prompt), prompts=prompts())
    assert sample.metadata["query_aware_only"]
    assert sample.context == prompt


def test_finished_prompts_are_built_and_cut_too(tmp_path):
    file = mini(tmp_path, "Before. " + "the sea is calm. " * 300 + "What is calm?")
    (sample,) = tasks.build("longbench/qasper", byte_level(), 600, 1, path=str(file))
    assert sample.length <= 600
    assert sample.metadata["cut_tokens"] > 0
    assert sample.metadata["query_aware_only"]
    assert sample.context.startswith("Before.")
    assert sample.context.endswith("What is calm?")


# --- v2 ---------------------------------------------------------------------------------------
def test_a_row_of_v2_becomes_a_question_with_four_choices(tmp_path):
    (sample,) = tasks.read(write_rows(tmp_path / "data.json", choice_row(answer="C")))
    assert sample.task == "longbench_v2"
    assert [f"({letter}) {text}" in sample.question for letter, text in
            zip("ABCD", ("red", "green", "blue", "black"), strict=True)] == [True] * 4  # fmt: skip
    assert sample.max_new_tokens == 128
    assert tasks.score("**The correct answer is (C)**", sample)["official"] == 1
    assert tasks.score("I think C", sample) == {"official": 0, "strict": 0, "compensated": 0.25}
    (slow,) = tasks.read(tmp_path / "data.json", chain_of_thought=True)
    assert slow.max_new_tokens == 128 + 1024
    assert slow.question != sample.question


def test_v2_filters_leave_what_was_asked_for(tmp_path):
    file = write_rows(
        tmp_path / "longbench_v2.jsonl",
        choice_row(_id="b1"),
        choice_row(_id="b2", difficulty="hard", length="long"),
        choice_row(_id="b3", length="medium", domain="Code Repository Understanding"),
    )

    def ids(**options):
        return [sample.metadata["id"] for sample in tasks.read(file, **options)]

    assert ids() == ["b1", "b2", "b3"]
    assert ids(difficulty="easy") == ["b1", "b3"]
    assert ids(length_group="long") == ["b2"]
    assert ids(domain="code repo") == ["b3"]
    assert ids(domain="literary", difficulty="hard") == ["b2"]
    with pytest.raises(UserError, match="no question is left"):
        tasks.build("longbench_v2", chat(), 0, 1, path=str(file), domain="law")
    with pytest.raises(UserError, match="difficulty='odd'; use one of easy, hard"):
        ids(difficulty="odd")


def test_official_v2_prompts_are_filled_in_one_pass(tmp_path):
    file = write_rows(
        tmp_path / "data.json", choice_row(context="see $Q$ and $C_A$", question="Q?")
    )
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Text: $DOC$ Ask: $Q$ $C_A$|$C_B$|$C_C$|$C_D$ End")
    (sample,) = tasks.read(file, prompts=str(prompt))
    assert sample.context == "Text: see $Q$ and $C_A$"
    assert sample.question == " Ask: Q? red|green|blue|black End"
    assert sample.wording == "official-file"
    prompt.write_text("$Q$ only")
    with pytest.raises(UserError, match=r"needs the marker \$DOC\$ exactly once"):
        tasks.read(file, prompts=str(prompt))
    prompt.write_text("$DOC$ $Q$ $COT$")
    with pytest.raises(UserError, match="second step of a chain of thought"):
        tasks.read(file, prompts=str(prompt))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "E"}, "field 'answer' is 'E', expected one of A, B, C, D"),
        ({"choice_C": None}, "field 'choice_C' is None, expected a text"),
        ({"length": 900}, "field 'length' is 900, expected one of short, medium, long"),
    ],
)
def test_a_wrong_row_of_v2_is_named(fields, message, tmp_path):
    file = write_rows(tmp_path / "data.jsonl", choice_row(), choice_row(**fields))
    with pytest.raises(UserError, match=f"data.jsonl, line 2: {message}"):
        tasks.read(file)


def test_markdown_pairs_of_a_folder_are_rows(tmp_path):
    text = (
        "# Metadata\n\n- ID: c1\n- Domain: Law\n- Subdomain: Courts\n- Difficulty: hard\n"
        "- Length: long\n\n# Question\n\nWho won?\n\n# Choices\n\n- A: he\n- B: she, on\n  appeal\n"
        "- C: they - D: as one\n- D: nobody\n\n# Answer\n\nB\n"
    )
    (tmp_path / "sample_1.md").write_text(text, encoding="utf-8")
    (tmp_path / "sample_1_context.txt").write_bytes(b"first line\r\n# Question\r\nlast")
    (tmp_path / "README.md").write_text("Where these come from.", encoding="utf-8")
    (sample,) = tasks.read(tmp_path)
    assert sample.context.endswith("first line\r\n# Question\r\nlast")
    assert "(B) she, on\n  appeal\n(C) they - D: as one\n(D) nobody" in sample.question
    assert sample.scoring == {"answer": "B"}
    about = {"id": "c1", "difficulty": "hard", "length": "long", "domain": "Law"}
    assert about.items() <= sample.metadata.items()
    (built,) = tasks.build("longbench_v2", chat(), 0, 5, path=str(tmp_path))
    assert built.context == sample.context


def test_a_markdown_pair_without_its_text_is_named(tmp_path):
    for number in (1, 2):
        (tmp_path / f"sample_{number}.md").write_text("# Metadata\n\n- ID: x\n", encoding="utf-8")
    (tmp_path / "sample_1_context.txt").write_text("text", encoding="utf-8")
    with pytest.raises(UserError, match=r"sample_1.md, headings: field 'Choices' is missing"):
        tasks.read(tmp_path, "longbench_v2")
    (tmp_path / "sample_1.md").unlink()
    (tmp_path / "sample_3_context.txt").write_text("text", encoding="utf-8")
    (tmp_path / "sample_3.md").write_text("no heading", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"cannot read .*sample_2_context.txt.*a part of sample_2.md"
    ):
        tasks.read(tmp_path, "longbench_v2")


# --- real files -------------------------------------------------------------------------------
def test_real_rows_are_read(published_files):
    counts = {"multi_news": 200, "multifieldqa_zh": 200, "passage_retrieval_zh": 200}
    for name, count in counts.items():
        samples = tasks.read(published_files / "longbench" / f"{name}.jsonl")
        assert {sample.task for sample in samples} == {f"longbench/{name}"}
        assert len(samples) == len({sample.metadata["id"] for sample in samples}) == count
        assert all(sample.metadata["length"] > 100 for sample in samples)


def test_real_v2_pairs_are_read(published_files):
    samples = tasks.read(published_files / "longbench_v2")
    assert len(samples) == 29
    assert [s.metadata["difficulty"] for s in samples].count("easy") == 11
    assert {s.metadata["length"] for s in samples} == {"short"}
    for sample in samples:
        assert tasks.score(sample.outputs[0], sample)["official"] == 1
        assert all(f"({letter}) " in sample.question for letter in "ABCD")
        assert len(sample.context) > 10_000


@pytest.mark.parametrize("name", sorted(longbench.METRICS))
def test_predictions_score_the_same_through_their_samples(name, tmp_path):
    """One right answer, one empty one: half the points, whichever way a file is read."""
    if facts(name).language == "zh":
        pytest.importorskip("jieba", reason="Chinese scores need jieba: pip install 'catekv[zh]'")
    given = row(f"longbench/{name}")
    gold = {"answers": given["answers"], "all_classes": given["all_classes"]}
    entries = {
        str(n): {"origin_prompt": "What?", "prediction": text, "gold": gold, "time": 1.0}
        for n, text in enumerate([given["answers"][0], ""])
    }
    file = tmp_path / f"MiniLongBench_{name}.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    samples, predictions = tasks.read(file), read_predictions(file).rows
    scores = [
        tasks.score(prediction.text, sample)["official"]
        for prediction, sample in zip(predictions, samples, strict=True)
    ]
    assert scores == [pytest.approx(1), 0]
    assert rescore(file).percent == 50


def test_real_predictions_score_the_same_through_their_samples(published_files, golden):
    pytest.importorskip("jieba", reason="Chinese scores need jieba: pip install 'catekv[zh]'")
    published = {
        case["inputs"]["dataset"]: case["expected"]["score"]
        for case in golden("benchmarks", "longbench_file")
    }
    seen = 0
    for file in sorted((published_files / "longbench" / "mini").glob("*.json")):
        samples, predictions = tasks.read(file), read_predictions(file).rows
        scores = [
            tasks.score(prediction.text, sample)["official"]
            for prediction, sample in zip(predictions, samples, strict=True)
        ]
        name = samples[0].task.removeprefix("longbench/")
        assert round(100 * sum(scores) / len(scores), 2) == rescore(file).percent
        if name in published:
            assert 100 * sum(scores) / len(scores) == pytest.approx(published[name], abs=0.005)
        assert all(sample.metadata["query_aware_only"] for sample in samples)
        seen += len(samples)
    assert seen == 237


def test_a_query_aware_sample_leaves_one_token_for_decoding(tmp_path):
    (sample,) = tasks.read(mini(tmp_path, "Before. The sea is calm. What is calm?"))
    prompt = encode(sample, byte_level())
    assert len(prompt.question_ids) == 1
