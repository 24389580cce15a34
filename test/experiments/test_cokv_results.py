"""Masks of exactly k heads, published result files, and scores in words and pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from catekv.calibration.cokv.comparison import Answer
from catekv.calibration.cokv.display import correlation, describe, draw_scores, rank_correlation
from catekv.calibration.cokv.drawing import Draw
from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.game import Sums
from catekv.calibration.cokv.tuning import default_alphas
from catekv.commands.cli import main
from catekv.errors import UserError
from catekv.methods.allocator_files import read_scores
from catekv.tasks.core.sample import Sample
from experiments.cokv.masked_heads import default_counts, masks_of, unmasked
from experiments.cokv.predictions import (
    comparison_table,
    paired_table,
    read_results,
    short_name,
    write_predictions,
    write_results,
)

SCORES = np.array([[5.0, 1, 8, 3], [7, 2, 6, 4]])


def score_file(worth: float = 1.0) -> ScoreFile:
    sums = Sums.empty(8, 3)
    for index in range(30):
        members = Draw(index, 3, "A").members(1, 8)
        value = worth * float(SCORES.ravel()[members].sum() - SCORES.ravel()[~members].sum())
        sums = sums.plus(members, value / 36)
    return ScoreFile(2, 4, ((sums,), (sums,)), {"task": "toy", "sample_hashes": ["a"]})


def test_exactly_k_heads_are_masked(golden) -> None:
    for case in golden("cokv", "mask_groups"):
        given = case["inputs"]
        keep = unmasked(np.array([given["scores"]], dtype=float), given["k"], given["which"])
        assert np.flatnonzero(~keep).tolist() == case["expected"]["masked"]


def test_masks_of_a_curve() -> None:
    masks = masks_of(SCORES, (1, 3), random_draws=2)
    assert {label: int((~keep).sum()) for label, keep in masks.items()} == {
        "full": 0, "window": 8, "top-1": 1, "low-1": 1, "random-1-0": 1, "random-1-1": 1,
        "top-3": 3, "low-3": 3, "random-3-0": 3, "random-3-1": 3,
    }  # fmt: skip
    assert np.flatnonzero(~masks["top-3"]).tolist() == [2, 4, 6]
    assert default_counts(256) == (16, 32, 64, 96, 128)
    assert default_counts(16) == (1, 2, 4, 6, 8)
    with pytest.raises(UserError, match="cannot mask 9 of 8 heads"):
        unmasked(SCORES, 9, "top")
    with pytest.raises(UserError, match="use top, low, random"):
        unmasked(SCORES, 1, "large")


def test_the_published_grid_of_alpha() -> None:
    assert default_alphas(256) == (1, 5, 10, 15, 20, 30, 40)
    assert default_alphas(16) == (1, 5, 10, 15)


def test_results_are_written_as_published(tmp_path: Path) -> None:
    samples = [
        Sample("longbench/trec", i, "c", "q", "", ("a", "b"), 8, 500 + i,
               512, scoring={"all_classes": ["x"]})
        for i in range(2)
    ]  # fmt: skip
    answers = [Answer("a", 1.0, 30), Answer("Ä", 0.25, 30)]
    path = write_predictions(tmp_path, "cokv_64", "longbench/trec", samples, answers)
    assert path == tmp_path / "pred" / "cokv_64" / "trec.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"pred": "a", "answers": ["a", "b"], "all_classes": ["x"], "length": 500},
        {"pred": "Ä", "answers": ["a", "b"], "all_classes": ["x"], "length": 501},
    ]
    write_results(tmp_path, "cokv_64", {"longbench/trec": [1.0, 0.25]})
    write_results(tmp_path, "cokv_64", {"longbench/lcc": [0.123456]})
    assert json.loads((tmp_path / "result_cokv_64.json").read_text()) == {
        "trec": 62.5,
        "lcc": 12.35,
    }
    assert read_results(tmp_path, "cokv_64") == {"trec": [1.0, 0.25], "lcc": [0.123456]}
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path, "snapkv_64")
    assert short_name("data/my_task.jsonl") == "my_task"


def test_the_table_of_all_runs() -> None:
    table = comparison_table(
        {"full": {"trec": [1.0, 1.0], "lcc": [0.5, 0.5]}, "cokv": {"trec": [0.0, 1.0]}},
        ["full", "cokv"],
    )
    lines = table.splitlines()
    assert lines[0] == "| run | trec | lcc | average (95 %) |"
    assert lines[2].startswith("| full | 100.0 | 50.0 | 75.0 (")
    # two samples of a task prove little
    low, high = map(float, re.findall(r"([\d.]+) to ([\d.]+)", lines[2])[0])
    assert low < 60 < 80 < high
    assert lines[3].startswith("| cokv | 50.0 | - | 50.0 (")


def test_runs_are_compared_sample_by_sample() -> None:
    scores = {"cokv": {"trec": [1.0, 0.5]}, "snapkv": {"trec": [0.5, 0.0], "lcc": [1.0]}}
    line = paired_table(scores, [("cokv", "snapkv")]).splitlines()[2]
    assert line.startswith("| cokv | snapkv | 50.0 (-")


def test_scores_in_words(tmp_path: Path) -> None:
    text = describe(score_file())
    assert "task toy, 1 validation samples" in text
    assert "MAE      0, below 0.125" in text
    assert "best     0.2 (" in text
    assert text.splitlines()[-1].startswith("layer   1  ")


def test_correlations() -> None:
    assert correlation(SCORES, 2 * SCORES + 1) == pytest.approx(1)
    assert rank_correlation(SCORES, -(SCORES**3)) == pytest.approx(-1)
    assert rank_correlation(np.array([[1.0, 1, 2]]), np.array([[3.0, 3, 9]])) == pytest.approx(1)
    assert np.isnan(correlation(SCORES, np.ones((2, 4))))
    with pytest.raises(UserError, match=r"\[2, 4\] and \[1, 3\] layers and heads"):
        correlation(SCORES, np.ones((1, 3)))


def test_a_heat_map_is_drawn(tmp_path: Path) -> None:
    path = draw_scores(tmp_path / "heads.svg", {"toy": SCORES, "other": -SCORES}, "both")
    assert path.read_text().count("<svg") == 1
    with pytest.raises(UserError, match="cannot draw"):
        draw_scores(tmp_path / "heads.foo", {"toy": SCORES})
    with pytest.raises(UserError, match="cannot write"):
        draw_scores(path / "heads.png", {"toy": SCORES})


def test_published_files_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sums,) = score_file().runs[0]
    content = {
        "cc_left": np.append(sums.left, 0), "cc_right": np.append(sums.right, 0),
        "count_left": np.append(sums.left_count, 0.0),
        "count_right": np.append(sums.right_count, 0.0), "sampling_count": sums.draws,
    }  # fmt: skip
    path, output = tmp_path / "cc_toy_4.npy", tmp_path / "toy.npz"
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    show = ["cokv", "show", str(path)]
    assert main(show) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert main([*show, "--trust-pickle"]) == 2
    assert "--shape LAYERSxHEADS" in capsys.readouterr().err
    assert main([*show, "--trust-pickle", "--shape", "\u00b2x4"]) == 2
    capsys.readouterr()
    assert main([*show, "--trust-pickle", "--shape", "4x4"]) == 2
    assert "do not fit 4 layers x 4 KV heads" in capsys.readouterr().err
    assert main([*show, "--trust-pickle", "--shape", "2x4", "--output", str(output)]) == 0
    assert "holds slice 3, not 4" in capsys.readouterr().err
    np.testing.assert_allclose(ScoreFile.load(output).scores(), score_file().scores())
    assert np.shape(read_scores(output)) == (1, 2, 4)
    with pytest.raises(UserError, match="is a published score file, a pickle; convert it"):
        read_scores(path)
    assert main(["cokv", "show", str(path), str(output), "--trust-pickle"]) == 2
    assert "not both" in capsys.readouterr().err
