"""``catekv atskv train | show`` on the embedded model, and its cost measurement."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from catekv.calibration.relevance.training import TrainingSettings
from catekv.commands import cli
from catekv.commands.atskv import OPTIONS, _check_output, asked_for
from catekv.commands.schema import add_options
from catekv.errors import UserError
from catekv.methods.atskv.files import load_predictors
from catekv.model import CateKVModel
from catekv.models import embedded
from experiments.atskv import relevance_cost
from experiments.atskv.choices import shipped_predictor
from experiments.atskv.relevance_cost import Cost, measure_cost, table

SMALL = ["--lengths", "256", "--samples", "1", "--held-out", "1", "--epochs", "1", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("predictors") / "new"
    words = ["atskv", "train", "--task", "ruler/vt", *SMALL, "--output", str(found)]
    assert cli.main(words) == 0
    return found


def test_training_leaves_predictors_recipe_and_curve(folder: Path) -> None:
    meta = load_predictors(folder).meta
    assert meta["model"] == "embedded"
    assert meta["tasks"] == ["ruler/vt"]
    assert meta["stream"] == "atskv-training"
    assert (meta["settings"]["label"], meta["settings"]["scale"]) == ("later", "rank")
    assert len(meta["held_out"]) == 4
    assert json.loads((folder / "curve.json").read_text()) == meta["curve"]
    assert (folder / "curve.png").stat().st_size > 5000


def test_trained_predictors_serve_an_evaluation(folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--tasks", "ruler/vt", "--lengths", "256", "--samples", "1", "--quiet"]
    words += ["--methods", "full", f"atskv:predictor={folder}", "--output", str(tmp_path / "run")]
    assert cli.main(words) == 0


def test_show_prints_recipe_and_quality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["atskv", "show", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "label later, scale rank, weight mass" in printed
    assert "rank correlation" in printed
    assert "trained on ruler/vt" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which prompts to train on"),
        (["--task", "ruler/vtt"], "unknown task"),
        (["--task", "ruler/vt", "--lengths", "many"], "--lengths takes whole numbers"),
        (["--task", "ruler/vt", "--epochs", "0"], "'0' is out of range"),
        (["--task", "ruler/vt", "--task-option", "x"], "--task-option takes NAME=VALUE"),
    ],
)
def test_wrong_input_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["atskv", "train", "--output", str(tmp_path / "x"), *words])
    except SystemExit as refused:  # what the parser itself refuses
        code = refused.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_predictors_that_diverged_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["atskv", "train", "--task", "ruler/vt", *SMALL, "--output", str(tmp_path / "x")]
    assert cli.main([*words, "--learning-rate", "1e30"]) == 2
    assert "training the predictors diverged" in capsys.readouterr().err
    assert not list((tmp_path / "x").glob("*"))


def test_predictors_are_not_overwritten_unasked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["atskv", "train", "--task", "ruler/vt", *SMALL]
    assert cli.main([*words, "--output", str(folder)]) == 2
    assert "use --overwrite" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main([*words, "--output", str(tmp_path / "file" / "x")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_show_refuses_what_holds_no_predictors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["atskv", "show", str(tmp_path)]) == 2
    assert "holds no relevance predictors" in capsys.readouterr().err


def test_show_refuses_a_recipe_that_is_damaged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "predictor.json"
    content = json.loads(file.read_text())
    for damage in ({"settings": {"label": 1}}, {"curve": [3]}, {"held_out": [{}]}):
        file.write_text(json.dumps({**content, "meta": {**content["meta"], **damage}}))
        assert cli.main(["atskv", "show", str(tmp_path / "copy")]) == 2
        assert "does not say how its predictors were made" in capsys.readouterr().err


def test_the_published_training_is_a_preset() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, OPTIONS)
    words = ["train", "--output", "x", "--preset", "published", "--epochs", "7"]
    parsed = parser.parse_args(words)
    asked, settings = asked_for(parsed)
    assert (asked.task, asked.lengths, asked.samples) == (("synthetic",), (512, 1024, 2048), 10)
    assert settings.epochs == 7
    assert (settings.label, settings.scale, settings.weight) == ("received", "max", "none")
    assert (settings.learning_rate, settings.batch_tokens) == (1e-4, 0)


def test_the_recommended_training_is_what_the_settings_say_by_themselves() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, OPTIONS)
    parsed = parser.parse_args(["train", "--output", "x", "--task", "ruler/vt", "--epochs", "5"])
    asked, settings = asked_for(parsed)
    assert settings == TrainingSettings()
    assert (asked.lengths, asked.samples, asked.plot) == ((1024,), 20, True)


def test_costs_are_shares_of_what_was_measured() -> None:
    one = Cost(1024, 2.0, 0.1, 0.5, 0.01, 0.001, 0.0, 0.0)
    assert one.prefill_share == pytest.approx(0.05)
    assert one.step_share == pytest.approx(0.1)
    assert "| 1024 | 2000.0 | 100.0 | 5.0 % |" in table([one])


def test_costs_are_measured_on_the_embedded_model() -> None:
    model = CateKVModel.from_pretrained(embedded.path(), method="full", device="cpu")
    predictor = shipped_predictor()
    assert predictor is not None
    found = measure_cost(model, predictor, 128, rounds=1)
    assert found.prefill > 0
    assert found.predictor > 0
    assert found.step > 0
    assert found.step_predictor > 0


def test_a_folder_that_takes_no_files_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot write to .* choose another place"):
        _check_output(tmp_path, overwrite=False)


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--context_sizes", "0"]])
def test_costs_of_nothing_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    relevance_cost.add_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2
    assert "give a whole number from 1 to" in capsys.readouterr().err


def test_costs_are_printed_before_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Cost(128, 2.0, 0.1, 0.5, 0.01, 0.001, 0.0, 0.0)
    monkeypatch.setattr(relevance_cost, "measure_cost", lambda *arguments: one)
    parser = argparse.ArgumentParser()
    relevance_cost.add_arguments(parser)
    (tmp_path / "file").write_text("")
    words = ["--context_sizes", "128", "--output", str(tmp_path / "file" / "x.json")]
    with pytest.raises(UserError, match=r"cannot write .*x\.json"):
        relevance_cost.command(parser.parse_args(words))
    assert "| 128 | 2000.0 |" in capsys.readouterr().out
