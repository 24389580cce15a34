"""A check of a model: masks, evaluation and fidelity in one folder, and one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catekv.calibration.check import text_clause
from catekv.commands.cli import main
from catekv.evaluation.fidelity.summary import Row
from catekv.evaluation.report.opening import opening
from catekv.evaluation.report.statistics import Estimate
from catekv.evaluation.run import runner

SIZES = ("--quick", "--length", "320", "--samples", "1", "--passages", "2", "--references", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    assert main(["check", *SIZES, "--new-masks", "--quiet", "--output", str(folder)]) == 0
    return folder


def test_the_embedded_model_gets_masks_an_evaluation_fidelity_and_a_sentence(
    finished: Path,
) -> None:
    sentence = json.loads((finished / "verdict.json").read_text())["sentence"]
    assert " catekv loses " in sentence or " catekv gains " in sentence
    assert "2 samples: too few samples to tell" in sentence
    assert "On plain text" in sentence
    assert (finished / "masks" / "chosen" / "head_type_p40.csv").is_file()
    assert (finished / "fidelity" / "summary.json").is_file()
    manifest = json.loads((finished / "evaluation" / "manifest.json").read_text())
    assert list(manifest["methods"]) == ["full", "catekv", "snapkv", "adakv", "streaming_llm"]
    assert manifest["lengths"] == [320]
    # the report begins with it
    lines = (finished / "report.md").read_text().splitlines()
    assert sentence in "".join(lines[:6]).replace("\\", "")


def test_the_same_command_measures_nothing_again(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "verdict.json").read_text()
    outcomes: list[Any] = []
    evaluate = runner.evaluate

    def watched(*arguments: Any, **options: Any) -> Any:
        outcomes.append(evaluate(*arguments, **options))
        return outcomes[-1]

    def sweep(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the masks are there")

    monkeypatch.setattr(runner, "evaluate", watched)
    monkeypatch.setattr("catekv.calibration.check.sweep", sweep)
    assert main(["check", *SIZES, "--new-masks", "--quiet", "--output", str(finished)]) == 0
    assert [outcome.measured for outcome in outcomes] == [0]
    assert (finished / "verdict.json").read_text() == before
    said = capsys.readouterr()
    assert "on this machine" in said.err
    assert json.loads(before)["sentence"] in said.out


def test_methods_are_compared_with_full_whether_it_is_named_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["check", *SIZES, "--quiet", "--output", str(tmp_path), "--methods"]
    assert main([*words, "snapkv"]) == 0
    assert "snapkv loses 0.0 points on 2 tasks" in capsys.readouterr().out
    monkeypatch.setattr(runner, "evaluate", None)
    assert main([*words, "full"]) == 2
    assert "nothing to compare with the full cache" in capsys.readouterr().err


def test_a_folder_of_another_check_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *SIZES, "--seed", "7", "--quiet", "--output", str(finished)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith("choose another --output or delete it")
    assert "holds a check of another configuration, different: seed (" in error


def row(method: str, mean: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    return {
        "method": method, "difference": {"mean": mean, "low": low, "high": high}, "unpaired": 0,
        "count": 18, "untouched": 0, "tasks": 2, "stored_bytes": 50, "full_bytes": 100, **changes,
    }  # fmt: skip


FULL = row("full", 0, 0, 0) | {"difference": None}
NAMED = {name: {"name": name} for name in ("full", "catekv", "snapkv")}


@pytest.mark.parametrize(
    ("low", "high", "meaning"),
    [
        (-44.0, -6.0, "hurts"),
        (-9.0, 4.0, "does not hurt by more than 10 points"),
        (-44.0, 6.0, "too few samples to tell"),
        (1.0, 6.0, "helps"),
    ],
)
def test_the_sentence_says_what_the_interval_means(low: float, high: float, meaning: str) -> None:
    said = opening([FULL, row("catekv", -22.2, low, high)], NAMED, "full")
    where = f"[{low:.0f}, {high:.0f}]"
    assert said == (
        f"At 50 % memory catekv loses 22.2 points on 2 tasks {where}, 18 samples: {meaning}."
    )


def test_the_sentence_names_the_method_that_loses_less() -> None:
    rows = [FULL, row("catekv", -22.2, -44.0, -6.0), row("snapkv", -5.0, -20.0, 8.0)]
    said = opening(rows, NAMED, "full")
    assert said is not None
    assert said.endswith("hurts; snapkv loses less (-5.0 [-20, 8]).")
    assert opening([FULL], NAMED, "full") is None
    assert opening(rows, NAMED, None) is None
    nothing = opening([FULL, row("catekv", 0.0, -1.0, 1.0, untouched=18)], NAMED, "full")
    assert nothing == "catekv compressed nothing of these prompts, which says nothing of it."


@pytest.mark.parametrize(
    ("low", "end"), [(0.015, "6 passages)."), (0.005, "6 passages hardly tell them apart).")]
)
def test_the_closest_method_on_text_is_named_with_its_certainty(low: float, end: str) -> None:
    def of(method: str, mean: float, low: float, high: float) -> Row:
        estimate = Estimate(mean, low, high, 6)
        return Row("text", "prose", 64, method, None, 0.5, *[estimate] * 5)

    said = text_clause([of("catekv", 0.02, low, 0.03), of("adakv", 0.008, 0.006, 0.01)])
    assert said.startswith(
        "On plain text adakv is closest to full (KL 0.0080, next catekv 0.0200; "
    )
    assert said.endswith(end)
