"""The journal: rows survive kills, torn lines, full disks and whoever takes the file away."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from catekv.calibration.cokv.journal import Plan, ScoreFolder
from catekv.errors import UserError
from catekv.evaluation.fidelity.records import read_records
from catekv.evaluation.records.journal import Form, Journal, line_of, read_rows
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.report.rescoring import rescored
from experiments.simcalkv.journal import unfinished

REPOSITORY = Path(__file__).resolve().parents[2]
EARLIER = REPOSITORY / "test" / "fixtures" / "earlier_runs"
FORM: Form[dict[str, Any]] = Form("row", lambda row: {**row, "row": row["row"]}, dict,
                                  itemgetter("row"), "delete that line")  # fmt: skip
LENIENT = Form(FORM.what, FORM.decode, FORM.encode, FORM.key)


def rows(*numbers: int) -> list[dict[str, Any]]:
    return [{"row": number, "text": "ä" * (number % 97)} for number in numbers]


def journal(folder: Path, **options: bool) -> Journal[dict[str, Any]]:
    return Journal(folder / "rows.jsonl", FORM, **options)


def test_rows_read_back_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    with journal(tmp_path) as written:
        written.append(*rows(1, 2))
        assert written.rows == {row["row"]: row for row in rows(1, 2)}
        written.append({"row": 1, "text": "\u2028 and half a character \ud800"})
    again = journal(tmp_path)
    assert list(again.rows) == [1, 2]
    assert again.rows[1]["text"] == "\u2028 and half a character \ud800"
    assert again.new_rows() == []


def test_rows_of_another_process_appear(tmp_path: Path) -> None:
    reader = journal(tmp_path)
    assert reader.new_rows() == []
    with journal(tmp_path) as writer:
        writer.append(*rows(1))
        assert reader.new_rows() == rows(1)
        writer.append(*rows(2, 3))
        assert reader.new_rows() == rows(2, 3)
        with writer.path.open("ab") as stream:
            stream.write(b'{"row": 4')
        assert reader.new_rows() == []
        with writer.path.open("ab") as stream:
            stream.write(b"}\n")
        assert reader.new_rows() == [{"row": 4}]


def test_a_torn_last_line_is_passed_over_and_healed(tmp_path: Path) -> None:
    with journal(tmp_path) as written:
        written.append(*rows(1, 2, 3))
    path = written.path
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        assert read_rows(path, FORM) == rows(1, 2)
        with journal(tmp_path) as again:
            again.append(*rows(3))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{", b"[" * 99999, b"[]", b"3", b'{"no": 1}', b"\xff\xfe"])
def test_a_damaged_line_is_named_or_passed_over(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line_of(rows(1)[0]))
    read = journal(tmp_path)
    assert read.new_rows() == rows(1)
    with path.open("ab") as stream:
        stream.write(b"\r\n" + damage + b"\n" + line_of(rows(2)[0]))
    for reading in (read.new_rows, lambda: read_rows(path, FORM)):
        with pytest.raises(UserError, match="line 3 is no row; delete that line"):
            reading()
    assert read_rows(path, LENIENT) == rows(1, 2)


def test_a_lazy_journal_makes_no_file_before_the_first_row(tmp_path: Path) -> None:
    with journal(tmp_path / "new", lazily=True) as written:
        assert not written.path.parent.exists()
        written.append(*rows(1))
        assert written.path.exists()
        written.remove()
    assert not written.path.exists()
    with pytest.raises(RuntimeError, match="with statement"):
        journal(tmp_path).append(*rows(1))


@pytest.mark.parametrize("lazily", [True, False])
def test_a_second_writer_is_refused(tmp_path: Path, lazily: bool) -> None:
    with journal(tmp_path) as first:
        first.append(*rows(1))
        with (
            pytest.raises(UserError, match="another run is writing"),
            journal(tmp_path, lazily=lazily),
        ):
            pass
    with journal(tmp_path, lazily=lazily) as second:
        second.append(*rows(2))
    assert list(second.rows) == [1, 2]


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="no regular file"), journal(tmp_path):
        pass


def test_a_row_that_does_not_fit_on_the_disk_is_one_clear_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with journal(tmp_path) as written:
            written.append(*rows(1))
            whole = written.path.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
            with pytest.raises(UserError, match="free some space and start the same command"):
                written.append({"row": 2, "text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert written.path.read_bytes() == whole


def _cut(path: Path) -> None:
    os.truncate(path, 10)


def _replace(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.write_text("")


def _delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _replace, _delete_folder])
@pytest.mark.parametrize("last", [True, False])
def test_rows_taken_away_during_a_run_are_noticed_and_written_again(
    tmp_path: Path, harm: Callable[[Path], None], last: bool
) -> None:
    folder = tmp_path / "run"
    with journal(folder) as earlier:
        earlier.append(*rows(50))

    def go_on() -> None:
        with journal(folder) as again:
            again.append(*rows(51))
            harm(again.path)
            if not last:
                again.append(*rows(52))

    with pytest.raises(UserError, match="deleted, replaced or cut during the run"):
        go_on()
    assert read_rows(earlier.path, FORM) == (rows(51) if harm is _cut else rows(50, 51))


_WRITER = """
import os
from pathlib import Path
from catekv.evaluation.records.journal import Form, Journal
form = Form("row", dict, dict, lambda row: row["row"])
if {within}:
    # a slow disk: every write takes a few bytes, so that a kill tears a line
    write = os.write
    os.write = lambda descriptor, data: write(descriptor, data[:7])
with Journal(Path({path!r}), form) as written:
    print("ready", flush=True)
    for row in range(400):
        if row not in written.rows:
            written.append({{"row": row, "text": "\u00e4" * (row % 97)}})
"""


@pytest.mark.parametrize("within", [False, True])
def test_killing_a_writer_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, within: bool
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    generator = random.Random(1)
    path = tmp_path / "rows.jsonl"
    code = _WRITER.format(path=str(path), within=within)
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert len(read_rows(path, FORM)) < 400
    assert kills == 2
    subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    assert read_rows(path, FORM) == rows(*range(400))


def test_folders_of_earlier_versions_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    records = RunDirectory(folder / "run").records()
    assert len(records) == 25
    assert {record.task.partition("/")[0] for record in records.values()} == {
        "infinitebench", "longbench", "longbench_v2", "niah", "ruler", "summarization", "synthetic",
        "zeroscrolls",
    }  # fmt: skip
    assert [rescored(record) for record in records.values()] == list(records.values())
    assert [r.divergence for r in read_records(folder / "fidelity" / "fidelity.jsonl")] == [
        0.1,
        1.1,
    ]
    shard = ScoreFolder(folder / "cokv", Plan(6, (2, 3), 5, 4, 3)).own()
    assert (shard.block, len(shard.known), list(shard.pending)) == (0, 2, [0])
    (path,) = (folder / "simcalkv").iterdir()
    held = unfinished(path.parent, "piqa", {"seed": 0})
    assert held.path == path
    # row 2 was torn by a kill, and its line ended by the next writer
    assert {row: measured.value for row, measured in held.rows.items()} == {
        0: [{"text": "a"}], 1: {"0": ["b", 0.5]}, 3: "after a torn line",
    }  # fmt: skip


def test_files_are_replaced_in_one_place() -> None:
    folders = ("catekv", "experiments", "bench", "select_headmask", "data")
    found = {
        str(path.relative_to(REPOSITORY))
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*.py")
        for word in ("os.replace(", "os.rename(", "shutil.move(", "partial.replace(", '".partial"')
        if word in path.read_text(encoding="utf-8")
    }
    assert found == {"catekv/files.py"}
