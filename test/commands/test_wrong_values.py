"""Values that are no answer: options of the wrong kind, numbers that are not finite."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catekv import methods
from catekv.calibration.kvzip.training import GateSettings
from catekv.calibration.relevance.training import TrainingSettings
from catekv.commands.cli import main
from catekv.errors import UserError
from catekv.evaluation.columns.specification import method_specs
from catekv.evaluation.run import session
from catekv.methods.allocators import budgets_from
from catekv.methods.head_mask import HeadMask
from experiments.atskv.api import Limits

WRONG: dict[str, list[Any]] = {
    "int": [1.5, True, "abc", float("nan"), [1]],
    "float": [True, "abc", float("nan"), float("inf"), [1]],
    "bool": [3, "yes", None, 0.5],
    "str": [3, True, [1]],
}
OPTIONS = [
    (name, item.name, str(item.type).partition(" | ")[0])
    for name in methods.available()
    for item in dataclasses.fields(methods.method_class(name))
    if str(item.type).removesuffix(" | None") in WRONG
]


@pytest.mark.parametrize(("name", "option", "kind"), OPTIONS)
def test_options_of_the_wrong_kind_are_refused(name: str, option: str, kind: str):
    for value in WRONG[kind]:
        with pytest.raises(UserError):
            methods.create(name, **{option: value})


def test_options_of_allocators_of_the_wrong_kind_are_refused():
    for options in ({"redistribute": 3}, {"rounding": 2}):
        with pytest.raises(UserError, match="is not"):
            budgets_from({"kind": "headkv", "scores": [[1.0, 2.0]], **options})


@pytest.mark.parametrize("value", ["3", "folder"])
def test_a_head_mask_that_would_be_ignored_is_refused(value: str):
    masks = {"mask": HeadMask(torch.ones(2, 2))}
    with pytest.raises(UserError, match="--mask"):
        method_specs([f"catekv:head_mask={value}"], masks, {})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1e-3, 0.0, 1e38])
@pytest.mark.parametrize("settings", [TrainingSettings, GateSettings])
def test_learning_rates(settings: type, value: float):
    with pytest.raises(UserError, match="learning rate"):
        settings(learning_rate=value)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("kvzap train --text prose --output {new} --hidden 99999999", "--hidden"),
        ("atskv train --task synthetic --output {new} --width 99999999", "--width"),
        ("atskv train --task synthetic --output {new} --feature-dim 99999996", "--feature-dim"),
        ("heads gates --output {new} --rate 1e38", "--rate"),
        ("report {new} --trained-length -5", "--trained-length"),
    ],
)
def test_sizes_that_no_memory_and_no_number_holds(
    line: str, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main(line.format(new=tmp_path / "new").split())
    error = capsys.readouterr().err
    assert error.startswith(f"error: argument {cause}")
    assert "is out of range" in error


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("tasks --length 512", "leave out --length"),
        ("tasks --overwrite ruler/vt", "leave out --overwrite"),
        ("tasks --build ruler/vt --output {new} --json", "leave out --json"),
        ("tasks ruler/vt --build ruler/vt --output {new}", "leave out ruler/vt"),
        ("tasks --build ruler/vt vt --output {new}", "holds ruler/vt twice"),
        ("plan --length 512 --method full --mask random:0", "leave --mask out"),
        ("triattention --text {text} --task ruler/vt --output {new}", "leave out --task"),
        ("triattention --text {text} --seed 1 --output {new}", "leave out --seed"),
        ("kvzap train --text prose --kind linear --hidden 8 --output {new}", "leave out --hidden"),
        ("atskv train --task vt vt --output {new}", "holds vt twice"),
        ("atskv train --task vt --lengths 512 512 --output {new}", "holds 512 twice"),
        ("atskv train --task rows.jsonl --lengths 512 --output {new}", "leave out --lengths"),
        ("atskv train --task rows.jsonl --task-option a=1 --output {new}", "out --task-option"),
        ("atskv train --task vt --kind linear --width 8 --output {new}", "leave out --width"),
        (
            "atskv train --task vt --features hidden --feature-dim 16 --output {new}",
            "--feature-dim",
        ),
        ("cokv score --task rows.jsonl --length 64 --output {new}", "leave out --length"),
        ("cokv score --task vt --split s.json --samples 3 --output {new}", "leave out --samples"),
        ("cokv tune --scores s.npz --capacities 32 32", "holds 32 twice"),
        ("heads export h.npz --to kvzip --group-size 2 --output {new}", "leave out --group-size"),
    ],
)
def test_options_that_nothing_would_read_are_refused(
    line: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.txt").write_text("One and two and three.")
    words = line.format(new=tmp_path / "new", text=tmp_path / "text.txt").split()
    assert main(words) == 2
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_statistics_that_cannot_be_written_are_not_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "open_model", lambda *a, **k: pytest.fail("the model was read"))
    assert main(["triattention", "--output", "/dev/null/x.pt"]) == 2
    assert "a part of the path is a file" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_gates_and_scores_that_are_not_finite(value: str, tmp_path: Path):
    gates = tmp_path / "full_attention_heads.tsv"
    gates.write_text(f"0.5\t{value}\n0.1\t0.2\n")
    with pytest.raises(UserError, match="finite"):
        HeadMask.load(gates, 0.5)
    with pytest.raises(UserError):
        methods.create("duo_attention", pattern=str(gates))
    scores = tmp_path / "scores.csv"
    scores.write_text(f"0.5,{value}\n0.1,0.2\n")
    with pytest.raises(UserError, match="finite"):
        methods.create("headkv", scores=str(scores))


@pytest.mark.parametrize("limit", [{"cost": math.nan}, {"prices": (1.0, math.nan)}])
def test_a_limit_that_no_cost_exceeds(limit: dict[str, Any]):
    with pytest.raises(UserError, match="must be numbers"):
        Limits(**{"cost": 1.0, "prices": (1.0, 2.0), **limit})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    heads = {f"{layer}-{head}": [1.0, 2.0] for layer in range(2) for head in range(4)}
    (tmp_path / "heads.json").write_text(json.dumps(heads))
    (tmp_path / "heads.csv").write_text("1,2\n3,4\n")
    (tmp_path / "mask.csv").write_text("1,0\n0,1\n")
    np.savez(tmp_path / "heads.npz", scores=np.ones((2, 2)))
    (tmp_path / "a.json").write_text(json.dumps({"kind": "headkv", "scores": "heads.json"}))
    (tmp_path / "a.yaml").write_text("kind: cokv\nscores: heads.csv\nalpha: 1\n")
    return tmp_path


@pytest.mark.parametrize("method", ["snapkv", "h2o", "label=streaming_llm"])
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("budgets=headkv,budgets.scores={}/heads.json", "headkv"),
        ("budgets.scores={}/heads.json,budgets=headkv", "headkv"),
        ("budgets.kind=headkv,budgets.scores={}/heads.npz", "headkv"),
        ("budgets.scores={}/heads.csv,budgets.kind=cokv,budgets.alpha=1", "cokv"),
        ("budgets=pyramid,budgets.beta=10", "pyramid"),
        ("budgets.beta=10,budgets=pyramid", "pyramid"),
        ("budgets={}/a.json", "headkv"),
        ("budgets={}/a.yaml", "cokv"),
        ("budgets={}/a.json,budgets.beta=1.5", "headkv"),
        ("budgets={}/heads.csv", "table"),
        ("budgets=table,budgets.counts={}/heads.csv", "table"),
        ("budgets=mask,budgets.mask={}/mask.csv", "mask"),
        ("budgets=none", "uniform"),
    ],
)
def test_every_spelling_of_budgets(method: str, options: str, kind: str, files: Path):
    (spec,) = method_specs([f"{method}:{options.format(files)}"], {}, {})
    made: Any = spec.create()
    assert made.budgets.kind == kind
    assert "beta=1.5" not in options or made.budgets.beta == 1.5
