"""The run directory: whose records it holds, and who may write to it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from catekv.errors import UserError
from catekv.evaluation.records.journal import line_of
from catekv.evaluation.records.records import Record, RunDirectory, merge, read_records


def record(index: int = 0, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "task": "ruler/vt",
        "length": 512,
        "index": index,
        "method": "full",
        "question": "agnostic",
        "method_hash": "m1",
        "official": 1.0,
        "prediction": "A B",
    }
    return Record(**{**values, **changes})


def line(index: int = 0, **changes: Any) -> bytes:
    return line_of(record(index, **changes).to_dict())


def manifest(**changes: Any) -> dict[str, Any]:
    values = {
        "config_hash": "c1",
        "configuration": {"seed": 42, "dtype": "float32"},
        "methods": {"full": {"hash": "m1", "name": "full"}},
        "tasks": ["ruler/vt"],
        "lengths": [512],
        "questions": ["agnostic"],
        "samples": 4,
        "starts": [{"time": "now"}],
    }
    return {**values, **changes}


def opened(folder: Path, *, rank: int = 0, world: int = 1, **changes: Any) -> RunDirectory:
    directory = RunDirectory(folder, rank, world)
    directory.prepare(manifest(**changes), resume=True, overwrite=False)
    return directory


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    full = record(
        references=("a", "b"),
        kept=((1, 2), (3, 4)),
        depths=(0.5,),
        scores={"set_f1": 0.5},
        metadata={"needles": 2},
        error={"type": "ValueError"},
        kept_tokens=2.5,
        official=0.0,
    )
    with opened(tmp_path) as directory:
        directory.append(full)
    assert read_records(tmp_path / "samples.jsonl") == [full]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(line(0) + b'{"task": "ruler/vt"\n' + line(1))
    with pytest.raises(UserError, match="line 2 is no record"):
        read_records(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("official", '"x"'), ("index", "0.5"), ("task", "3"), ("batch", "null"), ("error", "[]")],
)
def test_a_value_of_another_kind_is_an_error_with_its_line(
    name: str, value: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(line(0)[:-2] + f', "{name}": {value}}}\n'.encode())
    with pytest.raises(UserError, match="line 1 is no record"):
        read_records(path)


@pytest.mark.slow
def test_ten_thousand_records_are_read_in_two_seconds(tmp_path: Path) -> None:
    kept = tuple(tuple(range(8)) for _ in range(32))
    lines = [
        line(index, kept=kept, references=("a",), scores={"catekv": 1.0}, prediction="x " * 100)
        for index in range(10_000)
    ]
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines))
    seconds = []
    for _ in range(3):  # a busy machine and a collection of garbage slow single ones down
        start = time.process_time()
        assert len(RunDirectory(tmp_path).records()) == 10_000
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2


def test_records_of_older_and_newer_versions_are_read() -> None:
    old = record(0)
    values = json.loads(line(0))
    for name in ("batch", "context_questions"):
        values.pop(name)
    assert Record.from_dict({**values, "new_in_a_later_version": 1}) == old


def test_a_skip_is_an_error_record_of_its_own_kind() -> None:
    assert record(error={"type": "Skipped", "message": "too long"}).skipped
    assert not record(error={"type": "RuntimeError"}).skipped
    assert not record().skipped


def test_success_beats_error_and_later_beats_earlier() -> None:
    error = record(0, error={"type": "RuntimeError"}, official=None)
    first, second = record(0, prediction="first"), record(0, prediction="second")
    assert next(iter(merge([error, first, error]).values())) == first
    assert next(iter(merge([first, second]).values())) == second


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(UserError, match=r"different: seed \(42, now 43\); use --overwrite"):
        opened(tmp_path, config_hash="c2", configuration={"seed": 43, "dtype": "float32"})


def test_a_method_with_other_options_needs_another_label(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(UserError, match="method 'full' with other options"):
        opened(tmp_path, methods={"full": {"hash": "m2", "name": "full"}})
    opened(tmp_path, methods={"other": {"hash": "m2", "name": "full"}})
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert list(written["methods"]) == ["full", "other"]


def test_overwrite_deletes_only_what_runs_wrote(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.append(record())
    (tmp_path / "notes.txt").write_text("mine")
    directory.prepare(
        manifest(config_hash="c2", configuration={"seed": 43}), resume=True, overwrite=True
    )
    assert directory.records() == {}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_leaves_what_only_looks_alike(tmp_path: Path) -> None:
    names = ("summary.docx", "samples_train.jsonl", "thesis.partial", "samples.rankx.jsonl")
    for name in names:
        (tmp_path / name).write_text("mine")
    with opened(tmp_path) as directory:
        directory.append(record())
    (tmp_path / f".manifest.json.{os.getpid()}.partial").write_text("a killed writer's")
    directory.prepare(manifest(), resume=True, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names, "manifest.json"])


@pytest.mark.parametrize(
    "content", ["{}", '{"name": "my app", "version": 3}', "[1]", "{", "[" * 99999]
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_foreign_manifest_is_refused_whatever_the_flag(
    tmp_path: Path, content: str, overwrite: bool
) -> None:
    for name in ("manifest.json", "samples.jsonl", "summary.csv"):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="another folder") as caught:
        RunDirectory(tmp_path).prepare(manifest(), resume=True, overwrite=overwrite)
    assert "--overwrite" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 3


def test_samples_without_manifest_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(line())
    with pytest.raises(UserError, match=r"holds samples\.jsonl but no manifest\.json"):
        opened(tmp_path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path),
        pytest.raises(UserError, match="another run is writing"),
        RunDirectory(tmp_path),
    ):
        pass


def test_a_folder_belongs_to_one_command(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    with (
        directory.claimed(),
        pytest.raises(UserError, match="another run is writing"),
        RunDirectory(tmp_path, rank=0, world=2).claimed(),
    ):
        pass
    with directory.claimed():
        assert directory.records() == {}


def test_a_folder_that_a_process_of_another_command_writes_to_is_refused(tmp_path: Path) -> None:
    with (
        opened(tmp_path, rank=1, world=2),
        pytest.raises(UserError, match="another run is writing"),
        RunDirectory(tmp_path).claimed(),
    ):
        pass
    with RunDirectory(tmp_path).claimed():
        pass


def test_a_manifest_of_another_form_is_one_clear_error(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "manifest.json").write_text(
        '{"methods": {"full": {"name": "full"}}, "config_hash": "", "configuration": {}}'
    )
    with pytest.raises(UserError, match="does not say what its method 'full' is"):
        opened(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write results to .*taken.*--output"):
        opened(tmp_path / "taken")


def test_no_write_permission_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        # root may write everywhere; become nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"cannot write results to .*Permission denied"):
            opened(tmp_path / "run")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


def test_ranks_merge_the_same_way_however_many_there_were(tmp_path: Path) -> None:
    expected = {record(index).key: record(index) for index in range(8)}
    for world in (1, 2, 3):
        folder = tmp_path / str(world)
        for rank in range(world):
            with opened(folder, rank=rank, world=world) as directory:
                for index in range(rank, 8, world):
                    directory.append(record(index))
        assert directory.records() == expected
        directory.consolidate()
        assert [file.name for file in sorted(folder.glob("samples*"))] == ["samples.jsonl"]
        assert directory.records() == expected
