"""bench/gpu_suite.sh: records survive whatever happens, goals are judged, results are files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from bench import report, suite, worker  # noqa: E402
from bench.cases import Case, Result, Stage  # noqa: E402
from bench.records import ERROR, NOT_RUN, OK, WRONG, Goal, Outcome, Records  # noqa: E402

MANIFEST = {
    "command": "bench/gpu_suite.sh",
    "versions": {"torch": "2"},
    "git_commit": "abc",
    "device": {"name": "a GPU"},
    "remark": "",
}


def test_goals_are_bounds_from_below_or_above() -> None:
    assert Goal("ratio", 1.9, 1.85).met
    assert not Goal("ratio", 1.8, 1.85).met
    assert Goal("share", 0.02, 0.03, at_least=False).met
    assert not Goal("share", float("nan"), 0.03, at_least=False).met
    assert Goal("ratio", 1.8, 1.85).describe() == "ratio: 1.8 (goal >= 1.85) NOT MET"


def test_records_know_what_is_missing_and_what_was_interrupted(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.outcomes("a") == records.missing("a") == []
    records.announce("a", ["one", "two", "three"])
    records.start("a", "one")
    records.add(Outcome("a", "one", rows=[{"x": "1"}], goals=[Goal("g", 1.0, 2.0)]))
    assert records.interrupted("a") is None
    records.start("a", "two")
    with records.path.open("a") as stream:
        stream.write('{"kind": "outcome", "stage": "a", "ca')
    assert records.missing("a") == ["two", "three"]
    assert records.interrupted("a") == "two"
    (outcome,) = records.outcomes("a")
    assert outcome.goals == [Goal("g", 1.0, 2.0)]
    assert records.outcomes("b") == []


def test_reports_hold_tables_goals_and_what_went_wrong(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add(Outcome("a", "one", rows=[{"x": "1", "y": "2"}], goals=[Goal("speed", 3.0, 2.0)]))
    records.add(Outcome("a", "two", WRONG, rows=[{"x": "5", "z": "6"}], note="too far"))
    records.add(Outcome("a", "three", NOT_RUN, note="no time left"))
    report.write(tmp_path, MANIFEST, {"a": "Stage A", "b": "Stage B"})
    text = (tmp_path / report.SUITE_MARKDOWN).read_text()
    assert "| a | 1 | 1 | 0 | 1 | 1 of 1 | 0 |" in text
    assert "| 1 | 2 | - |\n| 5 | - | 6 |" in text
    assert "- speed: 3 (goal >= 2) met" in text
    assert "- two: wrong, too far" in text
    assert "## Stage B\n\nnot run" in text
    content = json.loads((tmp_path / report.SUITE_JSON).read_text())
    assert content["stages"]["a"][0]["goals"][0]["met"] is True
    assert content["manifest"]["git_commit"] == "abc"


def test_an_exception_is_an_outcome_and_the_next_case_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> Result:
        raise ValueError("no such\nkernel")

    made = [
        Case("fails", fails),
        Case("good", lambda: Result([{"x": "1"}], [Goal("g", 2.0, 1.0)])),
        Case("bad", lambda: Result(wrong=True, note="off")),
        Case("long", lambda: Result(), seconds=1000.0),
    ]
    module = type("module", (), {"cases": staticmethod(lambda stage: made)})
    monkeypatch.setattr(worker.importlib, "import_module", lambda name: module)
    words = ["--stage", "x", "--output", str(tmp_path), "--seconds", "60"]
    assert worker.main(words) == 0
    outcomes = Records(tmp_path).outcomes("x")
    assert [outcome.status for outcome in outcomes] == [ERROR, OK, WRONG, NOT_RUN]
    assert outcomes[0].note == "ValueError: no such kernel"
    assert "good: ok; g: 2 (goal >= 1) met" in capsys.readouterr().out
    # what has an outcome is not measured again
    assert worker.main(words) == 0
    assert len(Records(tmp_path).outcomes("x")) == 4


FAKE_STAGE = """
import os, sys, threading
from bench.cases import Case, Result

def crash():
    sys.stdout.flush()
    os._exit(11)

def cases(stage):
    return [
        Case("first", lambda: Result([{"x": "1"}]), 0.0),
        Case("crash", crash, 0.0),
        Case("second", lambda: Result([{"x": "2"}]), 0.0),
        Case("hangs", lambda: threading.Event().wait(), 0.0),
        Case("third", lambda: Result(), 0.0),
    ]
"""
BROKEN_STAGE = "raise RuntimeError('no driver')\n"


def test_crashes_and_hangs_cost_the_case_and_not_the_rest(tmp_path: Path) -> None:
    package = tmp_path / "code" / "bench"
    shutil.copytree(REPOSITORY / "bench", package)
    (package / "stages" / "fake.py").write_text(FAKE_STAGE)
    (package / "stages" / "broken.py").write_text(BROKEN_STAGE)
    script = (
        "import sys\nfrom bench import suite\n"
        "suite.STAGES = {'fake': ('Fake', 60), 'broken': ('Broken', 60)}\n"
        "suite.LEAST_SECONDS, suite._GRACE = 0, 1\n"
        f"suite.make_manifest = lambda command, scale: dict({MANIFEST!r})\n"
        "suite.limit_of = lambda name, scale, left: 6 if name == 'fake' else left\n"
        "sys.exit(suite.main(sys.argv[1:]))"
    )
    output = tmp_path / "out"
    path = os.pathsep.join([str(package.parent), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-c", script, "--scale", "tiny", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = {outcome.case: outcome for outcome in Records(output).outcomes("fake")}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "first": OK, "crash": ERROR, "second": OK, "hangs": NOT_RUN, "third": NOT_RUN
    }  # fmt: skip
    assert found["crash"].note == "the process ended with 11"
    assert found["hangs"].note == "ran out of time"
    (broken,) = Records(output).outcomes("broken")
    assert (broken.case, broken.status) == ("start", ERROR)
    assert "RuntimeError: no driver" in (output / suite.LOG).read_text()
    assert "error: fake, crash" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages", "speed"], "unknown stage 'speed'; stages: environment, correctness"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
        (["--output", "/dev/null/x", "--scale", "tiny"], "cannot write to /dev/null/x"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "make_manifest", lambda command, scale: MANIFEST)
    try:
        code = suite.main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert suite.main(["--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no usable CUDA device")
    assert error.count("\n") == 1
    assert "--scale tiny" in error


def test_every_stage_lists_its_cases_at_both_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    for name in suite.STAGES:
        module = importlib.import_module(f"bench.stages.{name}")
        for scale in suite.SCALES:
            names = [case.name for case in module.cases(Stage(scale))]
            assert names, name
            assert len(names) == len(set(names)), name


def run_suite(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "bench" / "gpu_suite.sh"
    environment: dict[str, Any] = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(script), "--scale", "tiny", "--output", str(output), *words],
        env=environment, cwd=output.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_one_stage_of_the_script_runs(tmp_path: Path) -> None:
    done = run_suite(tmp_path / "out", "--stages", "environment")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out" / report.SUITE_MARKDOWN).read_text()
    assert "copy, read and write" in text
    assert "Times and goals say nothing here" in text


@pytest.mark.slow
def test_all_stages_run_with_tiny_shapes(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run_suite(output, "--budget-seconds", "3000")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((output / report.SUITE_JSON).read_text())
    assert set(content["stages"]) == set(suite.STAGES)
    for stage, outcomes in content["stages"].items():
        assert outcomes, stage
        for outcome in outcomes:
            assert outcome["status"] == OK, outcome
    errors = [outcome for outcome in content["stages"]["correctness"] if outcome["rows"]]
    assert {row["kernel"].split()[0] for outcome in errors for row in outcome["rows"]} >= {
        "ragged_decode", "append", "window_scores", "window_statistics", "pack", "pages", "copy",
        "model",
    }  # fmt: skip
    assert len(list(output.iterdir())) <= 8
