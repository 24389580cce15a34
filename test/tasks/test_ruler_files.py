"""RULER files: our own, the official forms of 2024 and 2026, kvpress rows, and torn ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.commands.ruler_files import main
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.ruler.files import question_start
from catekv.tasks.files import sample_path


def rows_to(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


NEEDLES = "\n".join(f"The fact number {n} is hidden." for n in range(5))
QUESTION = "What is the fact for a-b mentioned in the text?"
PREFIX = " The fact for a-b mentioned in the text is"


@pytest.mark.parametrize("name", ["vt", "qa_2", "niah_multivalue"])
def test_own_files_come_back_as_they_were(name, tmp_path):
    tokenizer = ruler_tokenizers.byte_level()
    samples = tasks.build(f"ruler/{name}", tokenizer, 1024, 3, chat_template="phi3")
    path = tmp_path / "any.jsonl"
    tasks.write(path, samples)
    back = tasks.read(path)
    assert [encode(sample, tokenizer) for sample in back] == [
        encode(sample, tokenizer) for sample in samples
    ]
    for before, after in zip(samples, back, strict=True):
        assert after.outputs == before.outputs
        assert after.depths == pytest.approx(before.depths, abs=1e-6)
        assert {**after.to_dict(), "depths": ()} == {
            **before.to_dict(),
            "depths": (),
            "metadata": json.loads(json.dumps(before.metadata)),
        }


def test_rows_have_the_official_fields(tmp_path):
    samples = tasks.build("ruler/vt", ruler_tokenizers.byte_level(), 1024, 2)
    tasks.write(tmp_path / "vt.jsonl", samples)
    for number, line in enumerate((tmp_path / "vt.jsonl").read_text().splitlines()):
        row = json.loads(line)
        assert row["index"] == number
        assert row["input"] == samples[number].context + samples[number].question
        assert row["answer_prefix"] == samples[number].answer_prefix
        assert row["outputs"] == list(samples[number].outputs)
        assert row["length"] == samples[number].length


def test_repeated_index_is_refused_and_leaves_nothing(tmp_path):
    (sample,) = tasks.build("ruler/vt", ruler_tokenizers.byte_level(), 1024, 1)
    with pytest.raises(UserError, match="two samples have index 0"):
        tasks.write(tmp_path / "vt.jsonl", [sample, sample])
    assert list(tmp_path.iterdir()) == []


def test_file_of_2024_is_split_into_context_question_and_prefix(tmp_path):
    text = f"Instruction here.\n{NEEDLES}\n{QUESTION}{PREFIX}"
    row = {"index": 713, "input": text, "outputs": ["17"], "length": 99}
    path = rows_to(tmp_path / "niah_single_2" / "validation.jsonl", row, row)
    first, second = tasks.read(path)
    assert first.task == "ruler/niah_single_2"
    assert first.context == f"Instruction here.\n{NEEDLES}\n"
    assert (first.question, first.answer_prefix) == (QUESTION, PREFIX)
    assert (first.index, second.index) == (0, 1)
    assert first.metadata == {"file_index": 713}
    assert (first.length, first.max_new_tokens, first.metric) == (99, 128, "all")


def test_file_of_2026_keeps_its_answer_prefix(tmp_path):
    text = f"Instruction here.\n{NEEDLES}\n{QUESTION}"
    row = {"index": 1, "input": text, "outputs": ["17"], "length": 99, "answer_prefix": PREFIX}
    row["token_position_answer"] = 31
    (sample,) = tasks.read(rows_to(tmp_path / "4096_niah_single_1.jsonl", row))
    assert (sample.question, sample.answer_prefix) == (QUESTION, PREFIX)
    assert sample.metadata["token_position_answer"] == 31
    tokenizer = ruler_tokenizers.chat()
    assert tokenizer.decode(encode(sample, tokenizer).ids).endswith("<|assistant|>" + PREFIX)


def test_prefix_after_the_last_answer_mark(tmp_path):
    text = (
        "Track the variables.\nVAR A = 1\nQuestion: Find them. Answer: They are: A\n\nVAR B = 2\n"
    )
    last = "Question: Find all variables that hold 2. Answer: They are:"
    row = {"index": 0, "input": text + last, "outputs": "B", "length": 9}
    (sample,) = tasks.read(rows_to(tmp_path / "vt" / "validation.jsonl", row))
    assert sample.context == text
    assert sample.question == "Question: Find all variables that hold 2."
    assert sample.answer_prefix == " Answer: They are:"
    assert sample.outputs == ("B",)


def test_question_about_documents_starts_at_the_repeated_instruction(tmp_path):
    opening = "Reply briefly."
    text = f"{opening}\n\nDocument 1:\nA fact.\n\n{opening}\n\nQuestion: Why? Answer:"
    row = {"index": 0, "input": text, "outputs": ["x", "y"], "length": 9}
    (sample,) = tasks.read(rows_to(tmp_path / "qa_1" / "validation.jsonl", row))
    assert sample.context == f"{opening}\n\nDocument 1:\nA fact.\n\n"
    assert sample.question == f"{opening}\n\nQuestion: Why?"
    assert sample.answer_prefix == " Answer:"
    assert sample.metric == "part"


def test_file_with_a_chat_template_is_query_aware_unless_a_pattern_is_given(tmp_path):
    text = f"<|user|>{NEEDLES}\n{QUESTION}<|end|><|assistant|>{PREFIX}"
    row = {"index": 0, "input": text, "outputs": ["17"], "length": 9}
    path = rows_to(tmp_path / "niah_single_1" / "validation.jsonl", row)
    (sample,) = tasks.read(path)
    assert sample.metadata["query_aware_only"] is True
    tokenizer = ruler_tokenizers.chat()
    prompt = encode(sample, tokenizer)
    assert prompt.ids == tokenizer(text)["input_ids"]
    assert len(prompt.question_ids) == 1
    (sample,) = tasks.read(path, question_pattern=r"What is the fact")
    assert "query_aware_only" not in sample.metadata
    assert sample.question.startswith(QUESTION)
    assert encode(sample, tokenizer).ids == prompt.ids


def test_no_rule_means_no_guess():
    assert question_start("One line only. What is it?", "vt") is None
    assert question_start("Reply briefly.\nDocument 1:\nA fact.\nQuestion: Why?", "qa_1") is None


def test_rows_of_kvpress(tmp_path):
    row = {
        "context": "A long text.",
        "question": "Which?",
        "answer_prefix": " It is",
        "answer": ["this"],
        "task": "fwe",
        "max_new_tokens": 51,
    }
    (sample,) = tasks.read(rows_to(tmp_path / "rows.jsonl", row))
    assert (sample.task, sample.max_new_tokens) == ("ruler/fwe", 51)
    assert (sample.context, sample.question) == ("A long text.\n", "Which?")
    assert sample.outputs == ("this",)


def test_a_file_of_several_tasks_keeps_the_task_of_every_row(tmp_path):
    """As kvpress publishes them; read as the first row's task, the others had wrong scores."""
    rows = [
        {"context": "Text.", "question": "Which?", "answer": ["this"], "task": task}
        for task in ("vt", "qa_1")
    ]
    path = rows_to(tmp_path / "rows.jsonl", *rows)
    assert [(sample.task, sample.metric) for sample in tasks.read(path)] == [
        ("ruler/vt", "all"),
        ("ruler/qa_1", "part"),
    ]
    with pytest.raises(UserError, match="row 2 belongs to ruler/qa_1, not to ruler/vt"):
        tasks.read(path, task="vt")
    rows_to(path, rows[0], {**rows[1], "task": 5})
    with pytest.raises(UserError, match="line 2: RULER has no task '5'"):
        tasks.read(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input", None, "field 'input' is None, expected a text"),
        ("outputs", [""], "field 'outputs' holds the answer '', which is no text"),
        ("outputs", [None], "field 'outputs' holds the answer None, which is no text"),
        ("answer_prefix", 5, "field 'answer_prefix' is 5, expected a text"),
        ("length", -1, "field 'length' is -1, expected a whole number from 0"),
        ("length", float("inf"), "field 'length' is inf, expected a whole number from 0"),
        ("max_new_tokens", 0, "field 'max_new_tokens' is 0, expected a whole number from 1"),
    ],
)
def test_fields_of_another_kind_are_named_and_never_made_texts(field, value, message, tmp_path):
    good = {"index": 0, "input": "a\nb", "outputs": ["x"], "length": 1}
    path = rows_to(tmp_path / "vt.jsonl", good, {**good, field: value})
    with pytest.raises(UserError, match=rf"vt.jsonl, line 2: {message}"):
        tasks.read(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "ruler/none", "unknown task 'ruler/none'"),
        ("input", 5, "field 'input' is 5, expected a text"),
        ("context_characters", 10**6, "context_characters is 1000000, the text has "),
        ("context_characters", -1, "field 'context_characters' is -1, expected a whole number"),
        ("outputs", [" "], "field 'outputs' holds the answer ' ', which is no text"),
        ("max_new_tokens", 0, "field 'max_new_tokens' is 0, expected a whole number from 1"),
        ("index", 1.5, "field 'index' is 1.5, expected a whole number"),
    ],
)
def test_wrong_fields_of_own_rows_are_named(field, value, message, tmp_path):
    samples = tasks.build("ruler/vt", ruler_tokenizers.byte_level(), 1024, 2)
    path = tmp_path / "own.jsonl"
    tasks.write(path, samples)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows_to(path, rows[0], {**rows[1], field: value})
    with pytest.raises(UserError, match=rf"own.jsonl, line 2: {message}"):
        tasks.read(path)


def test_published_file_is_read_with_its_boundary(published_files):
    samples = tasks.read(published_files / "ruler" / "4096_niah_multikey_3.jsonl")
    assert len(samples) == 500
    assert {sample.task for sample in samples} == {"ruler/niah_multikey_3"}
    assert [sample.index for sample in samples] == list(range(500))
    for sample in samples:
        assert sample.context.endswith(".\n")
        assert sample.question.endswith("?")
        assert sample.answer_prefix.endswith(" is")
        assert sample.context.count(sample.outputs[0]) == 1
        assert sample.outputs[0] not in sample.question + sample.answer_prefix
        assert 3116 <= sample.length <= 3238


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"index": 0, "input": "a\\nb"', "line 1: not a complete JSON object"),
        ('{"index": 0, "outputs": ["x"]}', "line 1: field 'input' is missing"),
        ('{"index": 0, "input": "a\\nb"}', "field 'answer' is missing"),
        ('{"index": 0, "input": "a\\nb", "outputs": []}', "expected at least one answer"),
        ("[1, 2]", "expected a JSON object"),
        ("", "holds no row"),
    ],
)
def test_torn_and_foreign_lines_are_named(content, message, tmp_path):
    path = tmp_path / "vt" / "validation.jsonl"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        tasks.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torn_second_line_is_named_by_its_number(tmp_path):
    good = json.dumps({"index": 0, "input": "a\nb", "outputs": ["x"], "length": 1})
    path = tmp_path / "vt.jsonl"
    path.write_text(good + "\n" + good[:30])
    with pytest.raises(UserError, match="line 2"):
        tasks.read(path)


def test_unknown_task_and_missing_file(tmp_path):
    row = {"index": 0, "input": "a\nb", "outputs": ["x"], "length": 1}
    with pytest.raises(UserError, match="the task is not known"):
        tasks.read(rows_to(tmp_path / "file.jsonl", row))
    assert tasks.read(tmp_path / "file.jsonl", task="vt")[0].task == "ruler/vt"
    with pytest.raises(UserError, match="cannot read"):
        tasks.read(tmp_path / "absent.jsonl")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    ruler_tokenizers.byte_level().save_pretrained(folder)
    return folder


def test_prepare_writes_the_published_layout_and_goes_on(tokenizer_folder, tmp_path, capsys):
    command = [str(tokenizer_folder), "llama-3", "--output", str(tmp_path)]
    command += ["--lengths", "1024", "1200", "--num_samples", "2", "--tasks", "vt,niah_single_1"]
    assert main(command) == 0
    path = sample_path(tmp_path, "llama-3", 1200, "ruler/vt")
    assert path == tmp_path / "llama-3" / "1200" / "vt" / "validation.jsonl"
    samples = tasks.read(path)
    assert [sample.target_length for sample in samples] == [1200, 1200]
    made = path.stat().st_mtime_ns
    sample_path(tmp_path, "llama-3", 1024, "vt").unlink()
    assert main(command) == 0
    assert path.stat().st_mtime_ns == made
    assert len(tasks.read(sample_path(tmp_path, "llama-3", 1024, "vt"))) == 2
    capsys.readouterr()
    assert main([*command, "--seed", "7"]) == 2
    assert "holds other samples" in capsys.readouterr().err
    assert main([*command, "--seed", "7", "--overwrite"]) == 0
    assert tasks.read(path)[0].outputs != samples[0].outputs


def test_prepare_takes_words_of_the_user_and_leaves_out_begun_answers(
    tokenizer_folder, tmp_path, capsys
):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"word{n}" for n in range(40)))
    command = [str(tokenizer_folder), "base", "--output", str(tmp_path), "--lengths", "1024"]
    command += ["--num_samples", "1", "--tasks", "niah_single_1", "--no_answer_prefix"]
    assert main([*command, "--words_path", str(words)]) == 0
    (sample,) = tasks.read(sample_path(tmp_path, "base", 1024, "niah_single_1"))
    assert sample.answer_prefix == ""
    assert sample.metadata["keys"][0].startswith("word")
    assert main(command) == 2
    assert "holds other samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--tasks", "nothing"], "unknown task"),
        (["--lengths", "60"], "raise the length"),
        (["--lengths", "0"], "--lengths '0' is out of range; give a whole number from 1 to"),
        (["--lengths", "9" * 5000], "give a whole number from 1 to"),
        (["--tasks", ","], "names nothing"),
        (["--family", "../../x"], "would lead elsewhere"),
    ],
)
def test_prepare_reports_mistakes_in_one_line(tokenizer_folder, tmp_path, capsys, changes, message):
    command = [str(tokenizer_folder), "base", "--output", str(tmp_path)]
    command += ["--lengths", "1024", "--num_samples", "1", "--tasks", "vt", *changes]
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--num_samples", "0", "give a whole number from 1 to"),
        ("--output", "", "--output is empty"),
        ("--family", "", "--family is empty"),
    ],
)
def test_prepare_refuses_values_of_no_use(capsys, option, value, message):
    with pytest.raises(SystemExit) as ended:
        main(["model", option, value])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 400


def test_create_dataset_script(tokenizer_folder, tmp_path):
    root = Path(__file__).resolve().parents[2]
    script = str(root / "data" / "ruler" / "create_dataset.sh")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    command = ["bash", script, str(tokenizer_folder), "base", "--output", str(tmp_path)]
    command += ["--lengths", "1024", "--num_samples", "1", "--tasks", "vt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sample_path(tmp_path, "base", 1024, "vt").exists()
    command[2] = str(tmp_path / "absent")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no checkpoint folder" in done.stderr.splitlines()[-1]
    done = subprocess.run(["bash", script], env=environment, capture_output=True, check=False)
    assert done.returncode == 2
