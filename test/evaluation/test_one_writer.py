"""Commands that meet in one folder, and processes whose partner ended: nothing is lost or hangs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import save_tiny_checkpoint
from toy_tasks import register, toy_sample

from catekv.commands.sweep import sweep
from catekv.errors import UserError
from catekv.evaluation.columns.settings import RunSettings
from catekv.evaluation.records import locks
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.report import report
from catekv.evaluation.run.distributed import process_group
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.runner import evaluate
from catekv.evaluation.run.session import open_model, settings_for
from catekv.evaluation.sweep.grid import Grid, GridModel
from catekv.model import CateKVModel

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CateKVModel:
    return open_model(Request(model=str(checkpoint), device="cpu"))


@pytest.fixture
def settings(model: CateKVModel, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    register(monkeypatch, [toy_sample(0), toy_sample(1)])
    request = Request(
        model=model.model_id, tasks=("toy/rows",), lengths=(192,), samples=2, methods=("full",)
    )
    return settings_for(request, model)


def started(code: str, port: int) -> list[subprocess.Popen[str]]:
    """Two processes that meet at a port, as torchrun would start them."""
    shared = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_of_fewer_processes_leaves_the_files_of_one_at_work_alone(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, overwrite: bool
) -> None:
    evaluate(model, settings, tmp_path, progress=False)
    # a process of a run under torchrun, in the middle of its samples
    with RunDirectory(tmp_path, rank=1, world=2):
        before = content(tmp_path)
        with pytest.raises(UserError, match="another run is writing"):
            evaluate(model, settings, tmp_path, overwrite=overwrite, progress=False)
        assert content(tmp_path) == before
    assert evaluate(model, settings, tmp_path, progress=False).measured == 0


def test_scores_are_not_replaced_below_a_running_command(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    evaluate(model, settings, tmp_path, progress=False)
    directory = RunDirectory(tmp_path)
    with directory.claimed(), pytest.raises(UserError, match="another run is writing"):
        report.rescore_run(tmp_path)
    (tmp_path / "samples.jsonl").rename(tmp_path / "samples.rank1.jsonl")
    report.rescore_run(tmp_path)
    assert [file.name for file in tmp_path.glob("samples*")] == ["samples.jsonl"]
    assert len(directory.records()) == 2


def test_a_sweep_has_one_command_at_a_time(checkpoint: Path, tmp_path: Path) -> None:
    grid = Grid((GridModel("tiny", str(checkpoint)),), ("full",), ("ruler/vt",), (192,))
    with locks.claimed(tmp_path), pytest.raises(UserError, match="another run is writing"):
        sweep(grid, tmp_path, quiet=True)
    assert not any(tmp_path.iterdir())


_APART = """
from catekv.evaluation.run.distributed import process_group
from catekv.models.sharding import group_position, is_sharded
with process_group() as process:
    # a configuration may name more KV heads than its model has: no sign of a shared model
    print(process.world, group_position(), is_sharded(1, 71))
"""


@pytest.mark.slow
def test_processes_that_share_samples_share_no_heads() -> None:
    first, second = started(_APART, free_port())
    said, _ = first.communicate(timeout=120)
    second.communicate(timeout=120)
    assert said == "2 (0, 1) False\n"


_PROCESS = """
import os, sys
from catekv.errors import UserError
from catekv.evaluation.run.distributed import process_group
try:
    with process_group() as process:
        process.barrier()
        if not process.is_first:
            os._exit(3)
        process.barrier()
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.slow
def test_a_process_whose_partner_ended_says_so() -> None:
    first, second = started(_PROCESS, free_port())
    said, _ = first.communicate(timeout=120)
    second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (2, 3)
    assert said.startswith("another process of this run ended before its end")


_LEAVING = """
import sys, time
from catekv.evaluation.run.distributed import process_group
with process_group() as process:
    if process.is_first:
        time.sleep(2)  # it writes the summary
        finished = time.time()
left = time.time()
if process.is_first:
    process.outlive_siblings()
    print(finished, time.time())
else:
    time.sleep(1)  # it cleans up
    print(left, time.time())
sys.exit(int(process.is_first))
"""


@pytest.mark.slow
def test_processes_leave_together_and_the_one_with_the_verdict_ends_last() -> None:
    first, second = started(_LEAVING, free_port())
    # who ended is reaped by its parent, as torchrun does
    left, ended = map(float, second.communicate(timeout=120)[0].split())
    finished, outlived = map(float, first.communicate(timeout=120)[0].split())
    assert (first.returncode, second.returncode) == (1, 0)
    assert finished <= left
    assert ended <= outlived


@pytest.mark.parametrize(
    ("world", "message"), [("two", "WORLD_SIZE is 'two'"), ("2", "the processes cannot connect")]
)
def test_an_environment_that_torchrun_did_not_make_is_named(
    monkeypatch: pytest.MonkeyPatch, world: str, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message), process_group():
        pass
