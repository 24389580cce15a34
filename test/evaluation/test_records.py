"""The run directory: records survive kills, torn lines and other writers."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catekv.errors import UserError
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


def test_a_torn_last_line_is_tolerated_and_healed(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for index in range(3):
            directory.append(record(index))
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        assert len(read_records(path)) in (2, 3)
        with opened(tmp_path) as directory:
            directory.append(record(2))
        assert [r.index for r in directory.records().values()] == [0, 1, 2]
        assert path.read_bytes().endswith(b"\n")


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(record(0).to_line() + '{"task": "ruler/vt"\n' + record(1).to_line())
    with pytest.raises(UserError, match="line 2 is no record"):
        read_records(path)


def test_ten_thousand_records_are_read_in_two_seconds(tmp_path: Path) -> None:
    kept = tuple(tuple(range(8)) for _ in range(32))
    lines = [
        record(
            index, kept=kept, references=("a",), scores={"catekv": 1.0}, prediction="x " * 100
        ).to_line()
        for index in range(10_000)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(lines))
    directory = RunDirectory(tmp_path)
    start = time.process_time()
    assert len(directory.records()) == 10_000
    assert time.process_time() - start < 2


def test_records_of_older_and_newer_versions_are_read() -> None:
    old = record(0)
    values = json.loads(old.to_line())
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
    with pytest.raises(UserError, match=r"another configuration \(different: seed\).*--overwrite"):
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


def _cut(path: Path) -> None:
    os.truncate(path, 40)


def _replace(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.write_text("")


def _delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _replace, _delete_folder])
@pytest.mark.parametrize("last", [True, False])
def test_records_taken_away_during_a_run_are_noticed_and_written_again(
    tmp_path: Path, harm: Callable[[Path], None], last: bool
) -> None:
    folder = tmp_path / "run"
    with opened(folder) as directory:
        directory.append(record(0))
    directory = opened(folder)

    def go_on() -> None:
        with directory:
            directory.append(record(1))
            harm(directory.samples_path)
            if not last:
                directory.append(record(2))

    with pytest.raises(UserError, match="deleted, replaced or cut during the run"):
        go_on()
    kept = [found.index for found in directory.records().values()]
    assert kept == ([1] if harm is _cut else [0, 1])


def test_samples_without_manifest_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(record().to_line())
    with pytest.raises(UserError, match=r"holds samples but no manifest\.json"):
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


def test_a_record_that_does_not_fit_on_the_disk_is_one_clear_error(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # leaving it closes the file, which writes what is left once more
        with opened(tmp_path) as written:
            written.append(record(0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
            with pytest.raises(UserError, match="the same command again"):
                written.append(record(1, prediction="x" * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with opened(tmp_path) as again:
        assert list(again.records()) == [record(0).key]


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


_WRITER = """
import sys
from collections.abc import Callable
from pathlib import Path
sys.path.insert(0, {test_folder!r})
from test_records import manifest, opened, record
directory = opened(Path({folder!r}))
done = {{r.index for r in directory.records().values()}}
with directory:
    print("ready", flush=True)
    for index in range(400):
        if index not in done:
            directory.append(record(index, prediction="x" * (index % 97)))
"""


def test_killing_a_writer_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    code = _WRITER.format(test_folder=str(Path(__file__).parent), folder=str(tmp_path))
    generator = random.Random(1)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    found = list(RunDirectory(tmp_path).records().values())
    assert [r.index for r in found] == list(range(400))
    assert [len(r.prediction) for r in found] == [index % 97 for index in range(400)]
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 400
