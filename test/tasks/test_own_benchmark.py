"""A benchmark in one folder: loaded by name or found among the others, and then everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_plugins import forgetting

from catekv import tasks
from catekv.commands import cli
from catekv.errors import UserError
from catekv.evaluation.plugins import load_plugins
from catekv.evaluation.run.suites import suites
from catekv.tasks import families as package
from catekv.tasks import registry

FAMILY = '''"""Needles of the toolkit, under another name."""

import dataclasses

from catekv.tasks.core.task import Family

from .scoring import score
from catekv.tasks.registry import find

TASK = dataclasses.replace(find("synthetic"), name="own/vt", score=score)
FAMILY = Family("own", (TASK,))
'''
SCORING = "def score(prediction, sample):\n    return {'official': 0.5, 'strict': 0.5}\n"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from forgetting(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    (own / "family.py").write_text(FAMILY)
    (own / "scoring.py").write_text(SCORING)
    return own


def test_a_benchmark_of_ones_own_is_listed_and_evaluated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tasks", "--plugin", str(folder)]) == 0
    assert "\nown/vt" in capsys.readouterr().out
    assert "own/vt" in tasks.available()
    assert "own/vt" in suites()["mini"].tasks
    assert suites()["own"].tasks == ("own/vt",)
    words = ["evaluate", "--plugin", str(folder), "--suite", "own", "--methods", "full",
             "--lengths", "512", "--samples", "1", "--output", str(tmp_path / "run"),
             "--quiet"]  # fmt: skip
    assert cli.main(words) == 0
    (cell,) = json.loads((tmp_path / "run" / "summary.json").read_text())["cells"]
    assert (cell["task"], cell["official"]["mean"]) == ("own/vt", 50.0)
    assert "own/vt" in capsys.readouterr().out


def test_a_benchmark_is_there_because_its_folder_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "family.py").write_text(FAMILY.replace('find("synthetic")', 'BASE').replace(
        "registry import find", "families.synthetic.family import TASK as BASE"))  # fmt: skip
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder.parent)])
    registry._built_in.cache_clear()
    try:
        assert "own/vt" in tasks.available()
        assert registry.families()[0].name == "ruler"
    finally:
        monkeypatch.undo()
        registry._built_in.cache_clear()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "family.py has no FAMILY; add FAMILY = Family"),
        (FAMILY.replace("(TASK,)", "()"), "family 'own' has no tasks; add at least one Task"),
        (FAMILY.replace("own/vt", "ruler/vt"), "is called 'ruler/vt' already"),
        ("\n1 / 0\n", r"own, line 2: ZeroDivisionError"),
    ],
)
def test_what_a_folder_lacks_is_said(text: str, message: str, folder: Path) -> None:
    (folder / "family.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_plugins([str(folder)])
    assert "own/vt" not in tasks.available()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="give a Python file with a method, or a folder"):
        load_plugins([str(folder)])
