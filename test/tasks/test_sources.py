"""Where rows come from: path, folder, hub or a generator that was asked for; never a stand-in."""

from __future__ import annotations

import json

import pytest

from catekv.errors import UserError
from catekv.tasks.rows import sources
from catekv.tasks.rows.sources import DataOptions, Hub, load_rows

ROW = {"question": "q", "answer": "a"}
GENERATED = {"question": "made", "answer": "up"}


def load(options=None, **changes):
    settings = {
        "files": ("rows.jsonl", "other.json"),
        "hub": None,
        "built_in": lambda: [GENERATED],
        "how_to_get": "download rows.jsonl from the project's page",
    }
    return load_rows("family/task", options or DataOptions(), **{**settings, **changes})


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_path_may_be_the_file_or_its_folder_or_the_folder_above(tmp_path):
    file = write(tmp_path / "family" / "rows.jsonl", [ROW])
    for path in (file, file.parent, tmp_path):
        rows = load(DataOptions(path=str(path)))
        assert list(rows.rows) == [ROW]
        assert rows.data.startswith("file:rows.jsonl:")


def test_the_name_of_the_data_changes_with_the_content(tmp_path):
    file = write(tmp_path / "rows.jsonl", [ROW])
    before = load(DataOptions(path=str(file))).data
    write(file, [ROW, ROW])
    assert load(DataOptions(path=str(file))).data != before


def test_the_data_folder_of_the_environment_is_searched(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.DATA_FOLDER, str(tmp_path))
    write(tmp_path / "family" / "other.json", [ROW])
    assert list(load().rows) == [ROW]


def test_csv_and_lists_are_read(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("question,answer\nq,a\n", encoding="utf-8")
    assert load(DataOptions(path=str(table))).rows == [ROW]
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps([ROW, ROW]), encoding="utf-8")
    assert load(DataOptions(path=str(listed))).rows == [ROW, ROW]


def test_parquet_files_are_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra data")
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([ROW]).to_parquet(str(file))
    assert load(DataOptions(path=str(file))).rows == [ROW]


def test_missing_data_are_never_replaced_by_generated_rows(monkeypatch):
    monkeypatch.delenv(sources.DATA_FOLDER, raising=False)
    monkeypatch.setattr(sources, "hub_answers", lambda: False)
    with pytest.raises(UserError, match=r"data are not here.*download rows.jsonl.*path=FILE"):
        load(hub=Hub("somebody/rows"))
    assert load(DataOptions(source="built-in")).rows == [GENERATED]
    assert load(DataOptions(source="built-in")).data == "built-in"


def test_a_generated_benchmark_needs_no_wish(monkeypatch):
    monkeypatch.delenv(sources.DATA_FOLDER, raising=False)
    assert load(built_in_is_default=True).rows == [GENERATED]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "cloud"}, "use one of auto, path, hub, built-in"),
        ({"source": "hub", "path": "x"}, "exclude each other"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DataOptions(**options)


def test_wrong_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load(DataOptions(path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(UserError, match=r"holds none of rows\.jsonl, other\.json"):
        load(DataOptions(path=str(tmp_path)))
    with pytest.raises(UserError, match="source=path needs path=FILE"):
        load(DataOptions(source="path"))


def test_a_row_without_a_field_is_named_with_file_and_line(tmp_path):
    file = write(tmp_path / "rows.jsonl", [ROW, {"question": "q"}])
    rows = load(DataOptions(path=str(file)))
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: field 'answer' is missing"):
        list(rows.parsed(lambda position, row: row["answer"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer": "\\ud83d"}', r"half a character, '\\ud83d', which is no text"),
        ("[" * 100_000, "not a complete JSON object \\(maximum recursion depth"),
        ('{"answer": ' + "9" * 5000 + "}", "not a complete JSON object \\(Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_used_is_named_with_file_and_line(line, message, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"rows.jsonl, line 2: {message}") as caught:
        load(DataOptions(path=str(file)))
    assert "\n" not in str(caught.value)


def test_whole_characters_may_be_written_as_two_codes(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"answer": "\\ud83d\\ude00"}\n', encoding="utf-8")
    assert list(load(DataOptions(path=str(file))).rows) == [{"answer": "\N{GRINNING FACE}"}]
