"""HeteroCache's groups of heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenarios import random_ids
from tiny_models import tiny_model

from catekv import methods
from catekv.calibration.heads.head_scores import HeadScores
from catekv.calibration.heads.overlaps import (
    OverlapSettings,
    group_heads,
    kept_tokens,
    score_by_overlaps,
)
from catekv.commands import cli
from catekv.errors import UserError
from catekv.model import CateKVModel

Golden = Callable[[str, str], list[dict[str, Any]]]


def test_hetero_heads_golden(golden: Golden) -> None:
    for case in golden("methods_2026", "hetero_heads"):
        given, expected = case["inputs"], case["expected"]
        found = group_heads(
            torch.tensor(given["prefill"]), torch.tensor(given["decode"]), given["stable"],
            given["similar"],
        )  # fmt: skip
        assert found.stability.tolist() == pytest.approx(expected["stability"])
        assert list(found.classes) == expected["classes"]
        assert {str(pivot): rest for pivot, rest in found.groups.items()} == expected["groups"]
        shares, base = kept_tokens(found.stability, found.whole, given["ratio"], given["tokens"])
        assert shares.tolist() == pytest.approx(expected["share"], abs=1e-5)
        assert base == expected["base"]


def test_more_whole_heads_than_the_share_holds_are_refused() -> None:
    stability, whole = torch.tensor([0.2, 0.4, 0.9]), torch.tensor([True, True, False])
    with pytest.raises(UserError, match=r"2 of 3 heads keep everything, and a share of 0.5 holds"):
        kept_tokens(stability, whole, 0.5, 100)
    shares, base = kept_tokens(stability, torch.ones(3).bool(), 1.01, 100)
    assert shares.tolist() == [-1] * 3
    assert base == 100


def test_heads_of_a_model_are_grouped_and_their_scores_are_budgets(tmp_path: Path) -> None:
    model = CateKVModel(tiny_model("llama"))
    texts = random_ids(2, 60, seed=1).tolist()
    settings = OverlapSettings(top=20, steps=8, similar=0.9, stable=0.3, keep=0.9)
    scores, arrays = score_by_overlaps(model, texts, settings)
    assert scores.shape == (2, 3, 4)
    assert bool(((scores > 0) & (scores <= 1)).all())
    assert scores.mean() <= 0.9
    follows = arrays["group"]
    assert set(np.unique(follows)) <= {-1, 0, 1, 2, 3}
    assert bool(((arrays["stability"] >= 0) & (arrays["stability"] <= 1)).all())
    again, _ = score_by_overlaps(model, texts[1:], settings)
    assert np.array_equal(again[0], scores[1])
    path = HeadScores(scores, {"kind": "heterocache"}, arrays).save(tmp_path / "heads.npz")
    context = model.prefill(texts[0], method=methods.create("headkv", scores=path, keep=0.5))
    assert context.kept_share() == pytest.approx(0.5)
    with pytest.raises(UserError, match="60 most attended tokens are all of a text of 60"):
        score_by_overlaps(model, texts, OverlapSettings(top=60))
    with pytest.raises(UserError, match=r"layers 0, 2 .sliding window. of this model are not"):
        score_by_overlaps(CateKVModel(tiny_model("gemma3")), texts, settings)


def test_the_command_writes_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "heads.npz")
    words = ["heads", "overlaps", "--text", "prose", "--length", "150", "--samples", "2", "--quiet"]
    assert cli.main([*words, "--steps", "10", "--keep", "0.95", "--output", path]) == 0
    assert "headkv:scores=" in capsys.readouterr().out
    assert HeadScores.load(path).recipe["kind"] == "heterocache"
    assert cli.main([*words, "--top", "150", "--output", path, "--overwrite"]) == 2
    assert "give a smaller --top" in capsys.readouterr().err
