"""Sweeps from end to end: one after another or on Ray, with killed workers, resumed, refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from catekv.commands.sweep import sweep
from catekv.errors import UserError
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.sweep import cluster, serial, work
from catekv.evaluation.sweep.cluster import LOCAL, Tick
from catekv.evaluation.sweep.grid import Grid, GridModel
from catekv.evaluation.sweep.jobs import make_jobs
from catekv.evaluation.sweep.placement import Place

CATEKV = "catekv:init_tokens=8,recent_tokens=16,guard_tokens=8,window=16,budget=64"
WORKERS = 2
SAMPLES = 12
#: of a job: full, and two methods at two ratios
RECORDS = SAMPLES * 5
NAMES = ("tiny/ruler-vt-192", "tiny/ruler-niah_single_1-192")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    checkpoint = save_tiny_checkpoint(tmp_path_factory.mktemp("model"))
    return Grid(
        models=(GridModel("tiny", str(checkpoint), ("random:0",)),),
        methods=("full", CATEKV, "snapkv:window=16"),
        tasks=("ruler/vt", "ruler/niah_single_1"),
        lengths=(192,),
        ratios=(0.3, 0.6),
        settings={"samples": SAMPLES, "max_new_tokens": 6, "device": "cpu"},
    )


def small(grid: Grid, **changes: Any) -> Grid:
    """The same with one sample per task."""
    return Grid(**{**vars(grid), "settings": {**grid.settings, "samples": 1}, **changes})


def run(grid: Grid, folder: Path, **options: Any) -> int:
    return sweep(grid, folder, quiet=True, **options)


def answers(folder: Path, name: str) -> list[tuple[Any, ...]]:
    records = RunDirectory(folder / "runs" / name).records().values()
    return [(*r.key, r.prediction, r.official, r.kept, r.stored_bytes) for r in records]


def states(folder: Path) -> dict[str, tuple[str, int]]:
    """State and attempts of every job."""
    content = json.loads((folder / "sweep.json").read_text())
    return {run["name"]: (run["state"], run["attempts"]) for run in content["runs"]}


def lines(folder: Path, name: str) -> int:
    return (folder / "runs" / name / "samples.jsonl").read_bytes().count(b"\n")


@pytest.fixture(scope="module")
def undisturbed(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one process, from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(grid, folder) == 0
    return folder


def test_a_sweep_leaves_runs_a_manifest_and_a_joined_report(undisturbed: Path, grid: Grid) -> None:
    assert states(undisturbed) == dict.fromkeys(NAMES, ("finished", 1))
    content = json.loads((undisturbed / "sweep.json").read_text())
    assert content["grid"]["ratios"] == [0.3, 0.6]
    for entry in content["runs"]:
        assert (undisturbed / entry["path"] / "summary.json").is_file()
        assert entry["measurements"] == entry["records"] == RECORDS
        assert entry["place"]["kind"] == "cpu"
    assert (undisturbed / "report.html").is_file()


def test_all_methods_and_ratios_of_a_sample_share_its_prefill(undisturbed: Path) -> None:
    for name in NAMES:
        records = RunDirectory(undisturbed / "runs" / name).records().values()
        assert {record.prefill for record in records} == {"shared"}
        assert {record.method for record in records} == {
            "full", "catekv-r0.3", "snapkv-r0.3", "catekv-r0.6", "snapkv-r0.6"
        }  # fmt: skip


def test_the_joined_table_has_a_row_per_run_and_a_column_per_method(
    undisturbed: Path, grid: Grid, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(grid, undisturbed) == 0
    table = capsys.readouterr().out
    assert "catekv-r0.3" in table.splitlines()[0]
    assert all(any(line.startswith(name) for line in table.splitlines()) for name in NAMES)


def test_a_finished_sweep_does_nothing(
    undisturbed: Path, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished job was started")

    monkeypatch.setattr(work, "_measure", must_not_run)
    monkeypatch.setattr(cluster.Cluster, "__enter__", must_not_run)
    assert run(grid, undisturbed) == 0
    assert run(grid, undisturbed, ray=LOCAL) == 0


def test_a_finished_job_whose_records_went_is_done_again(grid: Grid, tmp_path: Path) -> None:
    assert run(small(grid), tmp_path) == 0
    wanted = answers(tmp_path, NAMES[0])
    file = tmp_path / "runs" / NAMES[0] / "samples.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    assert run(small(grid), tmp_path) == 0
    assert answers(tmp_path, NAMES[0]) == wanted
    assert states(tmp_path) == {NAMES[0]: ("finished", 1), NAMES[1]: ("finished", 0)}


def test_a_sweep_grows_by_methods_and_samples(grid: Grid, tmp_path: Path) -> None:
    assert run(small(grid, methods=("full",), ratios=(None,)), tmp_path) == 0
    first = answers(tmp_path, NAMES[0])
    assert run(small(grid), tmp_path) == 0
    grown = answers(tmp_path, NAMES[0])
    assert len(grown) == 5 * len(first)
    assert set(first) <= set(grown)


def test_a_dry_run_shows_the_jobs_and_writes_nothing(
    grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(grid, tmp_path / "sweep", dry_run=True) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert "0 recorded" in shown
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_ray_gives_the_same_after_an_interruption_and_a_killed_worker(
    grid: Grid, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is the extra `ray`")
    monkeypatch.setattr(cluster, "_TICK", 0.02)

    def interrupt(tick: Tick) -> None:
        if any(tick.records.values()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path, ray=LOCAL, cpus=WORKERS, watch=interrupt)
    assert {state for state, _ in states(tmp_path).values()} <= {"waiting", "finished"}
    before = sum(lines(tmp_path, name) for name in NAMES if any(
        (tmp_path / "runs" / name).glob("samples.jsonl")))  # fmt: skip
    assert 0 < before < 2 * RECORDS

    killed: list[str] = []

    def kill_once(tick: Tick) -> None:
        for name, process in tick.workers.items():
            if not killed and before < sum(tick.records.values()) and tick.records[name] < RECORDS:
                os.kill(process, signal.SIGKILL)
                killed.append(name)

    assert run(grid, tmp_path, ray=LOCAL, cpus=WORKERS, watch=kill_once) == 0
    assert len(killed) == 1
    assert states(tmp_path)[killed[0]] == ("finished", 2)
    for name in NAMES:
        assert answers(tmp_path, name) == answers(undisturbed, name)
        # nothing was lost, and nothing measured twice
        assert lines(tmp_path, name) == RECORDS
    assert not any((tmp_path / "workers").iterdir())


@pytest.mark.slow
def test_a_worker_that_always_dies_fails_its_job_after_the_retries(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is the extra `ray`")
    monkeypatch.setattr(cluster, "_TICK", 0.02)

    def kill_all(tick: Tick) -> None:
        for process in tick.workers.values():
            with contextlib.suppress(ProcessLookupError):  # of an earlier tick, not yet noticed
                os.kill(process, signal.SIGKILL)

    only = small(grid, tasks=("ruler/vt",))
    assert run(only, tmp_path, ray=LOCAL, cpus=1, max_retries=1, watch=kill_all) == 1
    assert states(tmp_path) == {NAMES[0]: ("failed", 2)}
    assert f"job {NAMES[0]} failed: the worker died" in capsys.readouterr().err


def test_what_a_job_raises_is_tried_again_and_the_others_go_on(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = work._measure

    def fails_on_one(job: Any, *rest: Any) -> None:
        if job.name == NAMES[0]:
            raise RuntimeError("planted")
        real(job, *rest)

    monkeypatch.setattr(work, "_measure", fails_on_one)
    assert run(small(grid), tmp_path, max_retries=2) == 1
    assert states(tmp_path) == {NAMES[0]: ("failed", 3), NAMES[1]: ("finished", 1)}
    assert "1 of 2 jobs failed; the same command tries them again" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(small(grid), tmp_path) == 0


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work._measure

    def stop_at_the_second(job: Any, *rest: Any) -> None:
        if job.name == NAMES[1]:
            raise KeyboardInterrupt
        real(job, *rest)

    monkeypatch.setattr(work, "_measure", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(small(grid), tmp_path)
    assert states(tmp_path) == {NAMES[0]: ("finished", 1), NAMES[1]: ("waiting", 1)}
    monkeypatch.undo()
    assert run(small(grid), tmp_path) == 0
    assert states(tmp_path) == {NAMES[0]: ("finished", 0), NAMES[1]: ("finished", 1)}


def test_wrong_input_is_not_tried_again(
    grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("no JSON\n")
    assert run(small(grid, tasks=(str(rows), "ruler/vt")), tmp_path / "sweep") == 1
    assert states(tmp_path / "sweep") == {
        "tiny/rows-rows": ("failed", 1),
        NAMES[0]: ("finished", 1),
    }
    assert str(rows) in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_for_several_devices_shares_the_model_among_processes(
    grid: Grid, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="tensor parallelism needs the package accelerate")
    job = make_jobs(small(grid))[0]
    shared, alone = (Place("cuda", 1, count, 1 << 30, 1, "shared") for count in (2, 1))
    results = {
        count: work.do(job, place, tmp_path / str(count))
        for count, place in ((2, shared), (1, alone))
    }
    assert {result.error for result in results.values()} == {""}
    found = {
        count: [(r.key, r.prediction, r.kept) for r in RunDirectory(tmp_path / str(count)).records()
                .values()] for count in (1, 2)
    }  # fmt: skip
    assert found[2] == found[1]
    manifest = json.loads((tmp_path / "2" / "manifest.json").read_text())
    assert manifest["starts"][0]["processes"] == {"count": 2, "parallel": "tensor"}


def test_without_ray_the_extra_is_named(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'catekv\[ray\]'"):
        run(grid, tmp_path, ray=LOCAL)


def test_a_cluster_that_does_not_answer_is_named(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is the extra `ray`")

    def no_answer(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", no_answer)
    with pytest.raises(UserError, match=r"cannot reach Ray at 'auto' .*start it with `ray start"):
        run(grid, tmp_path, ray="auto")


def test_what_fits_nowhere_is_refused_before_anything_is_written(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = serial.Machine("tiny", "cpu", 1 << 20, cpus=1)
    monkeypatch.setattr(serial, "this_machine", lambda: [tiny])
    with pytest.raises(UserError, match=r"the largest machine has 0\.00 GiB"):
        run(grid, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_another_file_in_the_place_of_the_manifest_is_refused(grid: Grid, tmp_path: Path) -> None:
    for content in ("{torn", "[]", '{"runs": 3}', '{"runs": [], "starts": 3}'):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=r"sweep\.json cannot be read as a sweep's"):
            run(grid, tmp_path)


def test_a_damaged_run_of_a_finished_sweep_is_named(
    grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small(grid), tmp_path) == 0
    folder = tmp_path / "runs" / NAMES[0]
    summary = (folder / "summary.json").read_text()
    for content in ("", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"official": 1}]}'):
        (folder / "summary.json").write_text(content)
        with pytest.raises(UserError, match=f"write it anew with `catekv report {folder}`"):
            run(small(grid), tmp_path)
    (folder / "summary.json").write_text(summary)
    (folder / "manifest.json").write_text("{torn")
    assert run(small(grid), tmp_path) == 1
    assert f"left out of the report: runs/{NAMES[0]}" in capsys.readouterr().err


def test_retries_are_counted_from_zero(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--max-retries -1 is negative"):
        run(grid, tmp_path, max_retries=-1)


def test_the_command_line_reads_a_grid_file(
    grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from catekv.commands.cli import main

    file = tmp_path / "nothing.yaml"
    assert main(["sweep", str(file)]) == 2
    assert "nothing.yaml: No such file or directory; check the name" in capsys.readouterr().err
    model = grid.models[0]
    file.write_text(
        f"models: [{{model: {model.path}, masks: [random:0]}}]\nmethods: [full]\n"
        "tasks: [ruler/vt]\nlengths: [192]\nsamples: 1\n"
    )
    assert main(["sweep", str(file), "--dry-run", "--output", str(tmp_path / "out")]) == 0
    assert "ruler-vt-192" in capsys.readouterr().out
