"""Experiments in a folder that holds files of somebody else: refused, and nothing is replaced."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from catekv.__main__ import main as catekv
from catekv.commands.cli import Parser, run_safely
from catekv.models import embedded
from experiments.atskv import experiment, selftest
from experiments.atskv.outputs import Output
from experiments.cokv import latency, longbench, masking, needle
from experiments.simcalkv import analyse_command

NOTES = "three years of notes"


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("log.txt", experiment, "--model_name embedded --context_sizes 256 --output_dir"),
        ("results.md", experiment, "--model_name embedded --context_sizes 256 --output_dir"),
        ("my_results.json", experiment, "--model_name embedded --context_sizes 256 --output_dir"),
        ("test_log.txt", selftest, "--output_dir"),
        ("analysis.json", analyse_command, "--model_name embedded --output_dir"),
    ],
)
def test_scripts_replace_no_foreign_file(
    name: str, module: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(NOTES)
    parser = Parser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    parsed = parser.parse_args([*words.split(), str(tmp_path)])
    assert run_safely(lambda: module.command(parsed)) == 2  # type: ignore[attr-defined]
    assert name in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: NOTES}


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("latency.md", latency, "--scores x --prompt 8 --outputs 1 --contexts 8"),
        ("runs.md", longbench, "--scores x --split x --capacities 16 --alphas 1"),
        ("masking.md", masking, "--scores x --split x"),
        ("needle.md", needle, "--scored 128 --lengths 128 --capacities 16 --alphas 1"),
    ],
)
def test_cokv_replaces_no_foreign_file(
    name: str, module: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / name).write_text(NOTES)
    path = str(module.__file__)  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "argv", [path, *words.split(), "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(path, run_name="__main__")
    assert left.value.code == 2
    assert f"holds {name}" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: NOTES}


def test_efficiency_replaces_no_foreign_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "efficiency.md").write_text(NOTES)
    assert catekv(["efficiency", "--model", str(embedded.path()), "--output", str(tmp_path)]) == 2
    assert "holds efficiency.md" in capsys.readouterr().err
    assert (tmp_path / "efficiency.md").read_text() == NOTES


def test_the_folder_of_an_earlier_run_is_used_again(tmp_path: Path) -> None:
    first = Output(tmp_path, [], {"seed": 1})
    first.prepare()
    # it failed before its first result
    first.write_text("log.txt", "no such model")
    Output(tmp_path, [], {"seed": 2}).prepare()
    assert (tmp_path / "log.txt").read_text() == "no such model"
