"""Result folders of kvpress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catekv.errors import UserError
from catekv.evaluation.predictions.kvpress_runs import folder_name, parse_name, read_runs


def test_folder_names(golden: Any) -> None:
    for case in golden("benchmarks_2026", "kvpress_folder"):
        assert folder_name(case["inputs"]["config"]) == case["expected"]["name"]


def test_names_are_read_from_their_right_end(golden: Any) -> None:
    for case in golden("benchmarks_2026", "kvpress_parse"):
        expected = case["expected"]
        parsed = parse_name(case["inputs"]["name"])
        assert {name: parsed[name] for name in expected} == pytest.approx(expected)
    config = {
        "dataset": "needle_in_haystack", "model": "org/a__b", "press_name": "kvzap_linear",
        "threshold": -3.0, "max_context_length": 4000, "needle_depth": 50,
    }  # fmt: skip
    parsed = parse_name(folder_name(config))
    assert (parsed["model"], parsed["max_context_length"]) == ("org/a__b", 4000)
    assert (parsed["kept"], parsed["value"]) == (None, -3.0)


@pytest.mark.parametrize("name", ["", "a__b", "ruler__model__press__x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no name of a kvpress run"):
        parse_name(name)


def write(folder: Path, metrics: Any, config: str | None, predictions: str | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if config is not None:
        (folder / "config.yaml").write_text(config)
    if predictions is not None:
        (folder / "predictions.csv").write_text(predictions)


def test_runs_are_found_in_any_depth(tmp_path: Path) -> None:
    first = tmp_path / "ruler__4096__a--b__snapkv__0.88"
    metrics = {"vt": {"string_match": 61.5}, "cwe": {"string_match": 10}}
    write(first, metrics, "dataset: ruler\ndata_dir: '4096'\nmodel: a/b\npress_name: snapkv\n"
          "compression_ratio: 0.875\nquery_aware: true\n")  # fmt: skip
    write(first / "1", {"vt": {"string_match": 60}}, None)
    zap = tmp_path / "deep" / "ruler__a--b__kvzap_mlp__-4.00"
    write(zap, [{"rouge-l": {"f": 0.5}}], None, "compression_ratio,task\n0.5,vt\n0.7,vt\n")
    runs = {run.path.name: run for run in read_runs(tmp_path)}
    run = runs["ruler__4096__a--b__snapkv__0.88"]
    assert (run.kept, run.query_aware, run.finished) == (0.125, True, True)
    assert run.scores == {"vt/string_match": 61.5, "cwe/string_match": 10.0}
    again = runs["1"]
    assert (again.press_name, again.kept, again.finished) == ("snapkv", pytest.approx(0.12), False)
    assert runs[zap.name].kept == pytest.approx(0.4)
    assert runs[zap.name].scores == {"0/rouge-l/f": 0.5}


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results of kvpress"):
        read_runs(tmp_path)
    folder = tmp_path / "ruler__a--b__snapkv__0.50"
    write(folder, {}, "a: [")
    with pytest.raises(UserError, match=r"config\.yaml .*is not YAML"):
        read_runs(tmp_path)
    (folder / "config.yaml").unlink()
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json cannot be read"):
        read_runs(tmp_path)


def test_a_report_shows_them_as_theirs(tmp_path: Path) -> None:
    from catekv.evaluation.report import report

    metrics = {f"task{number}": {"string_match": 10.0 * number} for number in range(5)}
    write(tmp_path / "ruler__4096__a--b__snapkv__0.50", metrics, None, "compression_ratio\n0.5\n")
    write(tmp_path / "math500__a--b__no_press__0.00", {"accuracy": 0.5}, "dataset: math500\n"
          "model: a/b\npress_name: no_press\n", "answer\n1\n")  # fmt: skip
    bare = tmp_path / "needles__a--b__knorm__0.25"
    write(bare, {"score": 0.25}, "dataset: n\nmodel: a/b\npress_name: knorm\n")
    written = report.report_on([tmp_path], output=tmp_path / "out")
    text = next(path for path in written.files if path.suffix == ".md").read_text()
    assert "Results of kvpress" in text
    assert "string_match 20.00 (mean of 5 tasks)" in text
    assert "accuracy 0.5" in text
    assert "score 0.25" in text
    assert "so not finished: " in text
