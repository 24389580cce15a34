"""``catekv evaluate --make-masks``: head masks for a model that has none, before it is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from catekv.calibration.head_masks import result
from catekv.commands import calibrate
from catekv.commands.cli import main
from catekv.models.embedded import shipped

LINE = ("evaluate", "--model", "mine", "--lengths", "320", "--samples", "1", "--budget", "64",
        "--quiet", "--make-masks", "--tasks")  # fmt: skip
SMALL = {**result.QUICK, "length": 320, "samples": 2, "held_out_samples": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that nobody made masks for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "QUICK", SMALL)
    shutil.copytree(shipped("ckpt/embedded"), "mine")
    return tmp_path


def test_masks_are_made_once_and_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "ruler/niah_single_2"]) == 0
    assert "mine has no head masks yet: making some first" in capsys.readouterr().err
    (manifest,) = here.glob("results/mine-*/manifest.json")
    used = json.loads(manifest.read_text())["methods"]["catekv"]["options"]
    made = (here / "results/headmask-mine/chosen/head_type_p40.csv").read_text()
    rows = [[int(value) for value in line.split(",")] for line in made.splitlines()]
    assert [[int(value) for value in row] for row in used["head_mask"]["adaptive"]] == rows
    assert used["budget"] == 64
    assert main([*LINE, "ruler/niah_single_2"]) == 0
    assert "has no head masks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["ruler/nothing"], "unknown task"),
        (["ruler/vt", "--methods", "full", "catekv:budget=x"], "budget"),
        (["ruler/vt", "--methods", "catekv:mask=other"], "wants mask 'other'"),
        (["ruler/vt", "--paper"], "needs a head mask, and there is none"),
    ],
)
def test_what_is_wrong_is_said_before_masks_are_made(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: list[str], cause: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(calibrate, "sweep", None)
    assert main([*LINE, *words]) == 2
    assert cause in capsys.readouterr().err


def test_methods_without_masks_need_none(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line: list[Any] = [word for word in LINE if word not in ("--budget", "64")]
    monkeypatch.setattr(calibrate, "sweep", None)
    assert main([*line, "ruler/vt", "--methods", "full", "snapkv:budget=64"]) == 0
