"""The option budgets: every way to write it, in every method that has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from method_tensors import SHAPE, check_method, check_static_table

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.allocators import KINDS, Demand, Mask, Table, Uniform, budgets_from
from catekv.methods.head_mask import HeadMask

SCORES = [[0.5, 0.1], [0.2, 0.9], [0.0, 0.3]]
MASK = HeadMask(torch.tensor([[0, 1], [0, 0], [1, 1]]), {"ratio": 0.5})
WRITTEN = {
    "uniform": "uniform",
    "pyramid": {"kind": "pyramid", "beta": 4, "rescale": True},
    "table": [[3, 9], [0, 40], [7, 7]],
    "mask": {"kind": "mask", "mask": MASK},
    "headkv": {"kind": "headkv", "scores": SCORES, "beta": 1.2},
    "cokv": {"kind": "cokv", "scores": SCORES, "alpha": 2, "rounding": "largest_remainder"},
    "curves": {
        "kind": "curves",
        "curves": {"shares": [0, 0.25, 1], "losses": [[[3, s, 0] for s in row] for row in SCORES]},
    },
}


def demand(budget: int = 12, tokens: int = 97, edges: int = 6) -> Demand:
    return Demand(budget, tokens, edges, SHAPE)


def test_all_kinds_are_tried_here() -> None:
    assert set(WRITTEN) == set(KINDS)


@pytest.mark.parametrize("kind", WRITTEN)
def test_budgets_survive_json_and_fit_the_room(kind: str) -> None:
    budgets = budgets_from(WRITTEN[kind])
    assert budgets.kind == kind
    assert budgets_from(json.loads(json.dumps(budgets.to_dict()))) == budgets
    for tokens in (3, 10, 97):
        room = max(0, tokens - 6)
        table = budgets.table(demand(tokens=tokens))
        assert table.shape == (3, 2)
        assert 0 <= int(table.min()) <= int(table.max()) <= room


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("name", ["snapkv", "streaming_llm", "sliding_window"])
def test_budgets_serve_different_methods(kind: str, name: str) -> None:
    options = {"snapkv": {"window": 6}, "streaming_llm": {"sinks": 6}, "sliding_window": {}}[name]
    method = methods.create(name, budget=20, budgets=WRITTEN[kind], **options)
    check_static_table(method)
    if kind != "table":
        check_method(method)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("total", [0, 7, 300, 546])
def test_exact_totals(kind: str, total: int) -> None:
    budgets = budgets_from(WRITTEN[kind])
    if kind == "mask" and total < 3 * 91:
        with pytest.raises(UserError, match="3 adaptive heads keep all 91"):
            budgets.exact_table(demand(), total)
        return
    table = budgets.exact_table(demand(), total)
    assert int(table.sum()) == total
    assert 0 <= int(table.min()) <= int(table.max()) <= 91


def test_totals_beyond_the_prompt_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot split 547 tokens .* has 91 such tokens in each"):
        Uniform().exact_table(demand(), 547)


def test_recommended_score_budgets_are_exact_for_every_prompt_length() -> None:
    for name in ("headkv", "cokv"):
        method = methods.create(name, preset="recommended", scores=SCORES, budget=37, window=4)
        for tokens in (30, 60, 97, 400):
            asked = 6 * min(tokens, 37 + 4)
            assert int(method.budget_table(tokens, SHAPE).sum()) == asked


@pytest.mark.parametrize("kind", ["headkv", "cokv"])
def test_a_prompt_within_the_budget_is_kept_whole_in_the_worst_head_too(kind: str) -> None:
    method = methods.create(kind, scores=[[0.1, 0.9], [0.5, 0.7]], budget=40, window=4)
    shape = ModelShape(2, 4, 2, 8)
    assert method.budget_table(44, shape).tolist() == [[44, 44]] * 2
    assert int(method.budget_table(45, shape).min()) < 44


def test_a_mask_keeps_adaptive_heads_whole() -> None:
    table = Mask(MASK).table(demand(budget=5))
    assert table.tolist() == [[5, 91], [5, 5], [91, 91]]
    exact = Mask(MASK).exact_table(demand(), 3 * 91 + 8)
    assert exact.tolist() == [[3, 91], [3, 2], [91, 91]]


def test_tables_from_files(tmp_path: Path) -> None:
    csv = tmp_path / "table.csv"
    csv.write_text("3,9\n0,40\n7,7\n")
    np.savez(tmp_path / "table.npz", budgets=np.array(WRITTEN["table"]), other=np.zeros(3))
    for source in (csv, str(csv), tmp_path / "table.npz", torch.tensor(WRITTEN["table"])):
        assert budgets_from(source) == Table(WRITTEN["table"])
    written = tmp_path / "budgets.yaml"
    (tmp_path / "scores.csv").write_text("0.5,0.1\n0.2,0.9\n0.0,0.3\n")
    written.write_text("kind: cokv\nscores: scores.csv\nalpha: 2\nrounding: largest_remainder\n")
    assert budgets_from(str(written)) == budgets_from(WRITTEN["cokv"])


def test_headkv_score_files_average_trials_and_query_heads(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    trials = {f"{layer}-{head}": [layer + head, 0.0] for layer in range(3) for head in range(4)}
    path.write_text(json.dumps(trials))
    budgets = budgets_from({"kind": "headkv", "scores": path})
    assert budgets.scores[2] == (1.0, 1.5, 2.0, 2.5)
    assert budgets.scores_for(SHAPE).tolist() == [[0.25, 1.25], [0.75, 1.75], [1.25, 2.25]]
    with pytest.raises(UserError, match="3 layers x 4 heads but the model has 3 layers x 8 query"):
        budgets.validate(ModelShape(3, 8, 8, 8))
    path.write_text(json.dumps({"0-0": [1.0], "1-1": [2.0]}))
    with pytest.raises(UserError, match="names 2 heads, but its layers and heads reach 2 x 2"):
        budgets_from({"kind": "headkv", "scores": path})
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="no HeadKV score file"):
        budgets_from({"kind": "headkv", "scores": path})


def test_tensor_parallel_parts() -> None:
    part = slice(1, 2)
    assert budgets_from("pyramid").for_heads(part) == budgets_from("pyramid")
    assert Table(WRITTEN["table"]).for_heads(part).counts == ((9,), (40,), (7,))
    assert Mask(MASK).for_heads(part).adaptive.tolist() == [[True], [False], [True]]
    with pytest.raises(UserError, match="write the budgets into a table"):
        budgets_from(WRITTEN["cokv"]).for_heads(part)
    method = methods.create("snapkv", budgets=WRITTEN["table"])
    assert method.for_heads(part).budgets.counts == ((9,), (40,), (7,))
    with pytest.raises(UserError, match="a total is split over all heads"):
        methods.create("snapkv", total=900).for_heads(part)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("pyramids", r"unknown budgets 'pyramids' \(did you mean 'pyramid'\?\)"),
        ({"kind": "cokw", "scores": SCORES}, "did you mean 'cokv'"),
        ({"kind": "pyramid", "betta": 2}, r"no option 'betta' \(did you mean 'beta'\?\); valid"),
        ({"kind": "pyramid", "beta": 0.5}, "beta 0.5 must be at least 1"),
        ({"kind": "pyramid", "short_prompt": "x"}, "use uniform or clamped"),
        ({"kind": "pyramid", "step": "x"}, "use integer or fractional"),
        ({"kind": "cokv", "scores": SCORES, "alpha": 7}, "alpha 7 is outside 1 to 6"),
        ({"kind": "cokv", "scores": SCORES, "alpha": 1.5}, "alpha 1.5 is not a whole number"),
        ({"kind": "headkv", "scores": SCORES, "beta": float("nan")}, "beta nan is not a number"),
        ({"kind": "headkv", "scores": SCORES, "beta": "x"}, "beta 'x' is not a number"),
        ({"kind": "cokv", "scores": SCORES, "rounding": "up"}, "use floor or largest_remainder"),
        ({"kind": "cokv", "scores": SCORES, "slice_scaling": "x"}, "use none or zscore"),
        ({"kind": "cokv"}, "give scores=FILE"),
        ({"kind": "mask"}, "give mask=FOLDER"),
        ({"kind": "headkv", "scores": [[0.1, float("nan")]]}, "no finite number"),
        ({"kind": "headkv", "scores": SCORES, "beta": 0.9}, "beta 0.9 must be at least 1"),
        ({"kind": "headkv", "scores": [1.0, 2.0]}, r"shape \[2\]; it is \[layers, heads\]"),
        ([[1, 2.5]], "whole numbers"),
        ([[1, -2]], "whole numbers"),
        ([[1, 2], [3]], "cannot be read as numbers"),
        ("/nowhere/table.csv", "/nowhere/table.csv cannot be read as numbers"),
        ("/nowhere/budgets.json", "cannot read /nowhere/budgets.json"),
        ({}, "unknown kind of budgets None"),
    ],
)
def test_bad_budgets_are_refused(written: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("snapkv", budgets=written)


def test_tables_of_another_model_are_refused_with_both_shapes() -> None:
    method = methods.create("snapkv", budgets=WRITTEN["table"])
    with pytest.raises(UserError, match="3 layers x 2 KV heads but the model has 2 layers x 2 KV"):
        method.validate(ModelShape(2, 4, 2, 8))
    one_row = methods.create("snapkv", budgets=[[3, 9]])
    one_row.validate(SHAPE)


def test_a_file_without_the_named_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", a=np.zeros(1), b=np.zeros(2))
    with pytest.raises(UserError, match="no array 'budgets' but a, b"):
        budgets_from(tmp_path / "table.npz")
