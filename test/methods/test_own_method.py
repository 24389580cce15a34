"""A method in one file: loaded by name, installed, or in the folder; and what it must say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_method_matrix as matrix
import test_methods_table as table
from own_plugins import DOCUMENT, documented_method, forgetting

import catekv
from catekv import methods
from catekv.commands import cli, method_list
from catekv.errors import UserError
from catekv.evaluation.plugins import load_plugins
from catekv.methods import registry

HEAD = (
    "from dataclasses import dataclass\n"
    "from catekv.methods import Example, Method, Selection, method_option, register\n"
)
KEEP = "    def select_observed(self, observed):\n        return Selection({})\n"
EVERYTHING = KEEP.format("observed.keys[..., 0] == observed.keys[..., 0]")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from forgetting(monkeypatch)


@pytest.fixture
def short_keys(tmp_path: Path) -> Path:
    path = documented_method(tmp_path)
    code = [line for line in path.read_text().splitlines() if line]
    assert len(code) <= 12
    return path


def test_the_documented_method_is_listed_and_explained(
    short_keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = ["--plugin", str(short_keys)]
    assert cli.main(["methods", *plugin]) == 0
    assert "\nshort_keys             nothing                budget\n" in capsys.readouterr().out
    assert cli.main(["methods", "short_keys", *plugin, *plugin]) == 0
    text = capsys.readouterr().out
    assert "Keep the budget tokens of every head whose keys are shortest." in text
    assert "  budget = 1024  (at least 0)\n      mean number of tokens" in text
    assert cli.main(["methods", "--markdown", *plugin]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "| `short_keys` | `budget` | `kept*e` | `kept` |  |" in rows
    assert (
        "| `short_keys` | Keep the `budget` tokens of every head whose keys are shortest. | - |"
        in rows
    )


def test_the_documented_method_runs_in_the_tests_of_all_methods(
    short_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_plugins([str(short_keys)])
    name = "short_keys"
    assert name not in matrix.CASES
    monkeypatch.setitem(matrix.CASES, name, matrix.examples()[name])
    matrix.test_every_method_shows_what_it_does()
    for setting in matrix.SETTINGS[:2]:
        matrix.test_a_finite_budget_equals_dense_attention_over_the_same_entries(name, *setting)
        matrix.test_an_infinite_budget_equals_the_stock_model(name, *setting)
    matrix.test_recommended_budgets_hold_exactly_what_was_asked(name, *matrix.SETTINGS[1])
    matrix.test_rows_with_questions_of_unequal_length_are_answered_as_alone(name)
    assert name in table.measured()
    table.test_formulas_hold(name, table.layers_of_a_prompt())


def test_the_documented_method_is_evaluated_beside_the_others(
    short_keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--plugin", str(short_keys), "--methods", "full", "catekv", "short_keys",
             "short=short_keys:budget=64", "--tasks", "ruler/vt", "--lengths", "512", "--samples",
             "1", "--output", str(tmp_path / "run"), "--quiet"]  # fmt: skip
    assert cli.main(words) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert set(manifest["plugins"]) == {str(short_keys)}
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    kept = {record["method"]: record["kept_share"] for record in map(json.loads, lines)}
    assert kept["short_keys"] == kept["catekv"] < kept["full"] == 1.0
    assert kept["short"] < 0.2
    capsys.readouterr()


def test_a_sweep_carries_plugins_to_its_jobs(
    short_keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    text = (
        "models: embedded\nmethods: [full, short_keys:budget=64]\ntasks: ruler/vt\nlengths: 256\n"
    )
    grid.write_text(text)
    words = ["sweep", str(grid), "--dry-run", "--output", str(tmp_path / "sweep")]
    assert cli.main(words) == 2
    assert "--plugin FILE" in capsys.readouterr().err
    grid.write_text(f"{text}plugins: [{short_keys}]\n")
    assert cli.main(words) == 0
    grid.write_text(f"{text}plugins: {short_keys}\n")
    assert cli.main(words) == 2
    assert "give a list" in capsys.readouterr().err
    grid.write_text(text)
    assert cli.main([*words, "--plugin", str(short_keys)]) == 0


def test_a_method_is_there_because_its_file_is(short_keys: Path, tmp_path: Path) -> None:
    package = Path(catekv.__file__).parent
    shutil.copytree(package, tmp_path / "catekv", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.move(short_keys, tmp_path / "catekv" / "methods" / "short_keys.py")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "catekv", "methods", "short_keys", "--json"]
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(ended.stdout)[0]["options"]["budget"] == 1024


def installed(folder: Path, value: str) -> None:
    """Make a folder look like an installed package with an entry point."""
    information = folder / "own_methods-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: own-methods\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[catekv.methods]\nshort_keys = {value}\n")


def test_installed_packages_bring_methods(
    short_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(short_keys.parent, "short_keys")
    monkeypatch.syspath_prepend(short_keys.parent)
    monkeypatch.setattr(registry, "_installed", registry._Installed())
    assert "short_keys" in methods.available()
    assert methods.create("short_keys", budget=3).to_dict() == {
        "name": "short_keys", "budget": 3, "total": None,
    }  # fmt: skip


def test_a_broken_package_is_named_and_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "no_such_module_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_installed", registry._Installed())
    with pytest.warns(UserWarning, match=r"own-methods cannot be loaded \(ModuleNotFoundError"):
        assert "snapkv" in methods.available()
    with pytest.raises(UserError, match="repair or uninstall"):
        methods.create("short_keys")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers no method; write @register above"),
        ("x = \n", r"plugin .*own.py, line 1: SyntaxError"),
        ("x = 1\0", r"plugin .*own.py: SyntaxError.*; save it as UTF-8"),
        ("import catekv\n\n1 / 0\n", r"own.py, line 3: ZeroDivisionError: division by zero"),
        (f"{HEAD}@register\n@dataclass(frozen=True)\nclass Own(Method):\n{EVERYTHING}",
         "method class Own has no name; add a line like name = 'my_method'"),
        (f"{HEAD}@register\n@dataclass(frozen=True)\nclass Own(Method):\n    name = 'My Method'\n"
         f"{EVERYTHING}", "has no name; add .*small letters"),
        (f"{HEAD}@register\n@dataclass(frozen=True)\nclass Own(Method):\n    name = 'snapkv'\n"
         f"{EVERYTHING}", "'snapkv' is taken by catekv.methods.snapkv; choose another name"),
        (f"{HEAD}@register\n@dataclass(frozen=True)\nclass Own(Method):\n    name = 'own'\n",
         "'own' chooses nothing; add select_observed"),
        (f"{HEAD}@register\nclass Own(Method):\n    name = 'own'\n{EVERYTHING}",
         "method class Own: write @dataclass\\(frozen=True\\) below @register"),
        (f"{HEAD}@register\nclass Own:\n    name = 'own'\n", "derive it from catekv.methods"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_said_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_plugins([str(path)])
    before = methods.available()
    assert cli.main(["methods", "--plugin", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert methods.available() == before


def own(folder: Path, body: str, name: str = "own") -> methods.Method:
    path = folder / f"{name}.py"
    path.write_text(
        f"{HEAD}@register\n@dataclass(frozen=True)\nclass Own(Method):\n    name = '{name}'\n{body}"
    )
    load_plugins([str(path)])
    return methods.create(name)


def test_missing_hooks_of_equal_memory_are_named(tmp_path: Path) -> None:
    shape = methods.ModelShape(2, 4, 2, 8)
    with pytest.raises(UserError, match=r"an option budget or with_total\(self, total, tokens"):
        own(tmp_path, EVERYTHING).with_total(40, 48, shape)
    option = "    budget: int = method_option(9, least=1)\n"
    budgeted = own(tmp_path, option + EVERYTHING, "budgeted")
    with pytest.raises(UserError, match=r"defines budget_table\(self, tokens, shape\)"):
        budgeted.with_total(40, 48, shape)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("observed.keys", "selected keep float32"),
        (
            "observed.keys[:, :1, :, 0] > 0",
            r"keep bool \[1, 1, 48\].* keep bool \[1, 2, 48",
        ),
    ],
)
def test_a_wrong_selection_is_refused(returned: str, message: str, tmp_path: Path) -> None:
    method = own(tmp_path, KEEP.format(returned))
    layer = table.layers_of_a_prompt(48)[0]
    with pytest.raises(UserError, match=message):
        method.select(layer.queries, layer.keys, layer.values)


def test_something_else_than_a_selection_is_refused(tmp_path: Path) -> None:
    method = own(tmp_path, "    def select_observed(self, observed):\n        return 3\n")
    layer = table.layers_of_a_prompt(48)[0]
    with pytest.raises(UserError, match=r"selected a int; return Selection\(keep\)"):
        method.select(layer.queries, layer.keys, layer.values)


COMMANDS = [
    ["evaluate"], ["fidelity"], ["efficiency"], ["calibrate"], ["methods"], ["tasks"],
    ["sweep", "grid.yaml"], ["generate", "--context", "a.txt", "--question", "?"],
    ["plan", "--length", "8"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_with_methods_takes_plugins(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "missing.py"):
        assert cli.main([*words, "--plugin", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --plugin {path}: give a Python file with a method, or a")
        assert len(error.splitlines()) == 1


def test_a_class_may_be_made_again(tmp_path: Path) -> None:
    cls = type(own(tmp_path, EVERYTHING))
    assert methods.register(cls) is cls


def test_the_page_says_what_the_methods_say() -> None:
    here = [
        name
        for name in methods.available()
        if methods.method_class(name).__module__.startswith("catekv.")
    ]
    said = method_list.render_markdown(method_list.list_methods(here)).splitlines()
    page = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [row for row in page if row.startswith("| `")]
    for row in rows:
        name = row.split("`")[1]
        if name in here:
            assert row in said, "print the tables of the page with `catekv methods --markdown`"
    assert len([row for row in rows if row.split("`")[1] in here]) >= 51
