"""bench/gpu_suite.sh: it fits, every goal is judged or named, results survive what ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from bench import cases as table  # noqa: E402
from bench import suite, worker, workload  # noqa: E402
from bench.cases import (  # noqa: E402
    AIM,
    BUDGET,
    CASES,
    ERROR,
    MET,
    MISSED,
    NOT_JUDGED,
    NOT_RUN,
    OK,
    WRONG,
    Case,
    Goal,
    Result,
    Scale,
)  # fmt: skip
from bench.results import FILE, TEXT, Outcome, Results, code_digest  # noqa: E402
from bench.stages import correctness, kernels  # noqa: E402
from catekv.errors import UserError  # noqa: E402
from catekv.evaluation.efficiency import memory  # noqa: E402
from catekv.models.presets import preset_config  # noqa: E402

MANIFEST: dict[str, Any] = {
    "command": "bench/gpu_suite.sh", "versions": {"torch": "2"}, "git_commit": "abc",
    "device": {"name": "a GPU"}, "scale": "full", "code": "123",
}  # fmt: skip
FASTER, SMALLER = Goal("faster", 2.0), Goal("smaller", 0.1, at_least=False)


# --- what is planned -----------------------------------------------------------------------------


def test_the_suite_fits_its_budget_and_its_aim() -> None:
    declared = sum(case.seconds for case in CASES)
    assert declared <= AIM <= BUDGET
    assert len({case.key for case in CASES}) == len(CASES)
    goals = [goal.name for case in CASES for goal in case.goals]
    assert len(goals) == len(set(goals))


@pytest.mark.parametrize(("gib", "shared"), [(78, 2), (139, 0)])
def test_a_plan_names_every_goal_and_what_a_small_device_changes(gib: int, shared: int) -> None:
    text = table.plan_text(CASES, gib)
    for case in CASES:
        assert case.key in text
        for goal in case.goals:
            assert goal.name in text
    assert text.count("layers share memory here; an H200 (139 GiB) holds it whole") == shared


def test_the_plans_sizes_are_those_of_the_model() -> None:
    from catekv.prefill.sizes import sizes_of_config

    sizes = sizes_of_config(preset_config(workload.MODEL), 2)
    assert (sizes.weight_bytes, sizes.kv_bytes_per_token) == (table.WEIGHTS, table.PER_TOKEN)


# --- goals and results ---------------------------------------------------------------------------


def test_goals_are_bounds_from_below_or_above() -> None:
    assert [FASTER.judge(value) for value in (2.0, 1.9, None)] == [MET, MISSED, NOT_JUDGED]
    assert [SMALLER.judge(value) for value in (0.1, 0.2, float("nan"))] == [MET, MISSED, MISSED]
    assert FASTER.describe(1.9) == "faster: missed, 1.9 (goal >= 2)"
    assert FASTER.describe(None, "no rival") == "faster: not judged, no rival (goal >= 2)"


def made(folder: Path, *cases: Case, **manifest: str) -> Results:
    return Results(folder, {**MANIFEST, **manifest}, cases)


def test_every_goal_is_judged_or_says_why_not(tmp_path: Path) -> None:
    planned = [Case("a", name, 1.0, goals=(Goal(name, 1.0),)) for name in "abcdef"]
    results = made(tmp_path, *planned)
    results.add(Outcome(case="a: a", values={"a": 2.0}))
    results.add(Outcome(case="a: b", values={"b": 0.5}))
    results.add(Outcome(case="a: c", reasons={"c": "no rival here"}))
    results.add(Outcome(case="a: d", status=ERROR, note="it broke"))
    results.add(Outcome(case="a: e", status=NOT_RUN, note="3 s were left"))
    found = {goal["name"]: (goal["state"], goal["reason"]) for goal in results.goals()}
    assert found == {
        "a": (MET, ""), "b": (MISSED, ""), "c": (NOT_JUDGED, "no rival here"),
        "d": (NOT_JUDGED, "error, it broke"), "e": (NOT_JUDGED, "not run, 3 s were left"),
        "f": (NOT_JUDGED, "has not run"), table.TIME: (NOT_JUDGED, "not every case has run"),
    }  # fmt: skip
    content = json.loads((tmp_path / FILE).read_text())
    assert list(content)[:2] == ["summary", "goals"]
    assert content["summary"] == "goals: 1 met, 1 missed, 5 not judged; cases: 4 of 6, 1 bad"
    text = (tmp_path / TEXT).read_text()
    assert "- b: missed, 0.5 (goal >= 1)" in text.partition("##")[0] or "- b: missed" in text
    assert len(list(tmp_path.iterdir())) == 2


def test_the_time_of_the_whole_suite_is_a_goal(tmp_path: Path) -> None:
    results = made(tmp_path, *CASES)
    for case in CASES:
        results.outcomes[case.key] = Outcome(case=case.key, seconds=case.seconds)
    *_, whole = results.goals()
    assert (whole["name"], whole["state"]) == (table.TIME, MET)
    assert whole["value"] == sum(case.seconds for case in CASES)


def test_tiny_shapes_judge_nothing(tmp_path: Path) -> None:
    results = made(tmp_path, Case("a", "a", 1.0, goals=(FASTER,)), scale="tiny")
    results.add(Outcome(case="a: a", values={"faster": 9.0}))
    assert [goal["state"] for goal in results.goals()] == [NOT_JUDGED]


def test_tables_have_all_columns_and_what_went_wrong(tmp_path: Path) -> None:
    results = made(tmp_path, Case("a", "one", 1.0), Case("a", "two", 1.0), Case("b", "one", 1.0))
    results.add(Outcome(rows=[{"x": "1", "y": "2"}], case="a: one"))
    results.add(Outcome(rows=[{"x": "5", "z": "6"}], case="a: two", status=WRONG, note="too far"))
    text = (tmp_path / TEXT).read_text()
    assert "| 1 | 2 | - |\n| 5 | - | 6 |" in text
    assert "- a: two: wrong, too far" in text
    assert "## b\n\nnot run" in text


# --- going on ------------------------------------------------------------------------------------


def test_what_another_run_finished_is_taken_over(tmp_path: Path) -> None:
    planned = [Case("a", name, 1.0) for name in ("one", "two", "three")]
    old = made(tmp_path, *planned)
    old.add(Outcome(case="a: one", values={"faster": 3.0}, rows=[{"x": "1"}]))
    old.add(Outcome(case="a: two", status=ERROR))
    old.add(Outcome(case="a: three", status=NOT_RUN))
    known = json.loads((tmp_path / FILE).read_text())
    assert known["planned"] == ["a: one", "a: two", "a: three"]
    new = made(tmp_path, *planned)
    assert new.take_over(Results.load(tmp_path / FILE)) == "1 of 3 cases are taken over"
    assert new.outcomes["a: one"] == old.outcomes["a: one"]
    assert [case.name for case in new.missing()] == ["two", "three"]


@pytest.mark.parametrize("changed", ["code", "device", "scale"])
def test_nothing_is_taken_over_from_other_code_or_another_device(
    tmp_path: Path, changed: str
) -> None:
    old, new = made(tmp_path, Case("a", "one", 1.0)), made(tmp_path, Case("a", "one", 1.0))
    old.add(Outcome(case="a: one"))
    new.manifest[changed] = "other"
    assert new.take_over(old).startswith(f"nothing is taken over: {changed} was")
    assert not new.outcomes


def test_the_digest_follows_the_sources() -> None:
    assert code_digest() == code_digest()
    assert len(code_digest()) == 16


@pytest.mark.parametrize("text", [None, "{", "{}", "[]", '{"planned": 3}'])
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=r"give (a|its) suite\.json"):
        Results.load(tmp_path / FILE)


# --- cases ---------------------------------------------------------------------------------------


def stage(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> list[Case]:
    """Cases whose stage has one function per name."""
    module = type("module", (), {"run": staticmethod(lambda scale, name: functions[name]())})
    monkeypatch.setattr(worker.importlib, "import_module", lambda name: module)
    return [Case("x", name, 1.0, goals=(FASTER,) * (name == "good")) for name in functions]


def fails() -> Result:
    raise ValueError("no such\nkernel")


def test_an_exception_is_an_outcome_and_the_next_case_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = stage(
        monkeypatch, fails=fails, good=lambda: Result(values={"faster": 3.0}),
        bad=lambda: Result(wrong=True, note="off"),
    )  # fmt: skip
    results = made(tmp_path, *planned, Case("x", "long", 1000.0))
    assert worker.measure(results, Scale(True), time.time() + 60) == 0
    found = Results(tmp_path, MANIFEST, results.cases)
    found.outcomes = {
        one["case"]: Outcome(**one) for one in json.loads((tmp_path / FILE).read_text())["cases"]
    }
    assert [one.status for one in found.outcomes.values()] == [ERROR, OK, WRONG, NOT_RUN]
    assert found.outcomes["x: fails"].note == "ValueError: no such kernel"
    assert "it takes about 1000 s" in found.outcomes["x: long"].note
    assert "x: good: ok; faster: met, 3 (goal >= 2)" in capsys.readouterr().out


def test_nothing_is_measured_behind_a_wrong_essential_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(monkeypatch, good=lambda: Result(wrong=True))
    essential = Case("x", "good", 1.0, essential=True)
    results = made(tmp_path, essential, Case("x", "later", 1.0))
    assert worker.measure(results, Scale(True), time.time() + 60) == 0
    assert results.outcomes["x: later"].status == NOT_RUN
    assert results.outcomes["x: later"].note == "x: good is wrong"


def test_a_failing_test_makes_correctness_wrong(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase name="good"/><testcase name="no"><skipped/></testcase>'
        '<testcase name="bad"><failure message="apart&#10;by 3"/></testcase>'
        "</testsuite></testsuites>"
    )
    result = correctness.read(report)
    assert result.wrong
    assert result.note == "1 passed, 1 failed, 1 skipped"
    assert result.rows == [{"test": "bad", "says": "apart by 3"}]
    report.write_text('<testsuites><testsuite tests="0"/></testsuites>')
    assert correctness.read(report).wrong


def test_a_missing_rival_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "seconds", lambda scale, load: (1e-3, 2))
    result = kernels.run(Scale(True), "128K all full", (2048,) * 8)
    assert result.reasons == {table.RIVAL: "flash_attn is not installed"}


def test_memory_is_judged_where_layers_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv.evaluation.efficiency.measurement import Measurement

    scale = Scale(True)
    planned = memory.memory_model(workload.load_model(scale)).resident_bytes(100.0)
    row = Measurement("ours", 200, 1, True, 100.0, resident_bytes=int(planned * 1.02))
    ((name, apart),) = workload.memory_values(scale, [row], "x").items()
    assert name == "x: memory off the byte model"
    assert apart == pytest.approx(0.02, rel=1e-3)
    row.distinct_layers = 3
    assert not workload.memory_values(scale, [row], "x")


# --- the command ---------------------------------------------------------------------------------

FAKE_STAGE = """
import os, subprocess, threading
from bench.cases import Result

def run(scale, name):
    if name in ("crash", "hangs"):
        child = subprocess.Popen(["sleep", "1000"])
        with open(name, "w") as stream:
            stream.write(f"{child.pid} ")
    if name == "crash":
        os._exit(11)
    if name == "hangs":
        threading.Event().wait()
    return Result([{"x": name}])
"""


def start_fakes(folder: Path, names: Sequence[str], patience: int) -> subprocess.Popen[str]:
    """A suite of such cases that writes into ``folder/out``; after ``patience`` seconds and a bit
    one hangs."""
    package = folder / "bench"
    shutil.copytree(REPOSITORY / "bench", package)
    (package / "stages" / "fake.py").write_text(FAKE_STAGE)
    with (package / "cases.py").open("a") as stream:
        stream.write(
            f"\nCASES = tuple(Case('fake', name, 0.1) for name in {names!r})\nSTAGES = ('fake',)\n"
        )
    source = (package / "worker.py").read_text()
    changed = source.replace("_ON_CPU = 3.0, 30.0, 10", f"_ON_CPU = 1.0, {patience}.0, 1")
    assert changed != source
    (package / "worker.py").write_text(changed)
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    return subprocess.Popen(
        [sys.executable, "-m", "bench.suite", "--scale", "tiny", "--output", str(folder / "out")],
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}, cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_crashes_and_hangs_cost_the_case_and_not_the_rest(tmp_path: Path) -> None:
    names = ("first", "crash", "second", "hangs", "third")
    done = start_fakes(tmp_path, names, patience=2)
    printed, said = done.communicate()
    assert done.returncode == 1, said
    content = json.loads((tmp_path / "out" / FILE).read_text())
    assert {one["case"]: one["status"] for one in content["cases"]} == {
        "fake: first": OK, "fake: crash": ERROR, "fake: second": OK, "fake: hangs": ERROR,
        "fake: third": OK,
    }  # fmt: skip
    notes = {one["case"]: one["note"] for one in content["cases"]}
    assert notes["fake: crash"] == "the process ended with 11"
    assert "error: fake: crash: the process ended with 11" in printed
    for name in ("crash", "hangs"):
        assert ends(tmp_path / name), "what a case started would go on beside the next one"


@pytest.mark.slow
def test_a_suite_that_is_terminated_leaves_nothing_running(tmp_path: Path) -> None:
    suite = start_fakes(tmp_path, ("hangs",), patience=600)
    while not (tmp_path / "hangs").exists() or not (tmp_path / "hangs").read_text():
        assert suite.poll() is None, suite.communicate()[1]
        time.sleep(0.05)
    suite.terminate()
    suite.communicate(timeout=60)
    assert suite.returncode == 128 + signal.SIGTERM
    assert ends(tmp_path / "hangs")


def ends(written: Path) -> bool:
    """Whether the process whose number was written ends within ten seconds."""
    stat = Path("/proc", written.read_text().strip(), "stat")
    patience = time.monotonic() + 10
    while runs(stat) and time.monotonic() < patience:
        time.sleep(0.01)
    return not runs(stat)


def runs(stat: Path) -> bool:
    """Whether a process, given by its file of the kernel's, is there and alive."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stages", "speed"], "unknown stage 'speed'; stages: start, smoke, decode"),
        (["--stages", ","], "unknown stage ''"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
        (["--output", "/dev/null/x", "--scale", "tiny"], "cannot write to /dev/null/x"),
        (["--budget-seconds", "0"], "--budget-seconds 0 must be above 0"),
        (["--budget-seconds", "nan"], "'nan' is out of range"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = suite.main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = suite.importlib.util.find_spec
    monkeypatch.setattr(
        suite.importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
    )
    assert suite.main(["--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sys.executable} has no triton; name a Python")
    assert said.count("\n") == 1
    assert suite.main(["--plan"]) == 0


def run_suite(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "bench" / "gpu_suite.sh"
    environment: dict[str, Any] = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(script), "--output", str(output), *words],
        env=environment, cwd=output.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_a_gpu_it_says_what_it_would_do(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run_suite(tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no usable CUDA device")
    assert done.stderr.count("\n") == 1
    for size in suite.SIZES:
        assert table.plan_text(CASES, size) in done.stdout
    assert run_suite(tmp_path / "out", "--plan").returncode == 0


def test_without_a_gpu_its_tests_are_one_skipped_line(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = ["-m", "pytest", "-m", "gpu", "test/gpu", "-p", "no:cacheprovider", "-n", "0"]
    environment = {**os.environ, "CATEKV_GPU_TESTS": ""}
    done = subprocess.run(
        [sys.executable, *words, f"--basetemp={tmp_path / 'base'}"], cwd=REPOSITORY,
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "no CUDA device: nothing under test/gpu was run" in done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.slow
def test_a_run_can_go_on_from_another(tmp_path: Path) -> None:
    first = run_suite(tmp_path / "one", "--scale", "tiny", "--stages", "start")
    assert first.returncode == 0, first.stdout + first.stderr
    words = ["--scale", "tiny", "--stages", "start,kernels", "--resume"]
    second = run_suite(tmp_path / "two", *words, str(tmp_path / "one" / FILE))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "2 of 7 cases are taken over" in second.stdout
    assert "start: machine: ok" not in second.stdout
    text = (tmp_path / "two" / TEXT).read_text()
    assert "copy, read and write" in text
    assert "tiny shapes on a CPU say nothing" in text


@pytest.mark.slow
def test_all_stages_run_with_tiny_shapes(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run_suite(output, "--scale", "tiny", "--budget-seconds", "3000")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((output / FILE).read_text())
    assert [one["case"] for one in content["cases"]] == [case.key for case in CASES]
    assert {one["status"] for one in content["cases"]} == {OK}
    # every goal of the table has a case that gives its value or says why it does not
    for case, one in zip(CASES, content["cases"], strict=True):
        for goal in case.goals:
            on_cuda_only = "memory" in goal.name or "peak" in goal.name
            assert on_cuda_only or goal.name in one["values"] or goal.name in one["reasons"]
    assert len(list(output.iterdir())) <= 8


def test_device_tests_can_be_collected() -> None:
    """They run where there is a device only; a name that they miss must show before."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "test/gpu", "--collect-only"],
        cwd=root, env={**os.environ, "CATEKV_GPU_TESTS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
