"""What KVzip's scores teach: gates of KVzap, and head masks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scenarios import random_ids
from tiny_models import tiny_model

from catekv import HeadMask, methods
from catekv.calibration.heads.head_scores import HeadScores
from catekv.calibration.kvzip.heads import best_tokens, released_mask, score_heads
from catekv.calibration.kvzip.training import GateSettings, fit, train_gates
from catekv.commands import cli
from catekv.errors import UserError
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.kvzap.gates import Gates
from catekv.model import CateKVModel

TEXTS = ["--text", "prose", "--length", "100", "--quiet"]


def test_kvzip_heads_golden(golden) -> None:
    for case in golden("methods_2026", "kvzip_heads"):
        given, expected = case["inputs"], case["expected"]
        scores = torch.tensor(given["scores"])
        found = best_tokens(scores)
        torch.testing.assert_close(found, torch.tensor(expected["head_scores"]))
        mask = HeadMask.from_scores(found, given["keep"])
        if given["rule"] == "strict":
            mask = released_mask(mask, given["keep"], scores.shape[-1])
        assert mask.adaptive.int().tolist() == expected["full"]


def test_heads_are_scored_by_their_best_token_of_any_text() -> None:
    model = CateKVModel(tiny_model("llama"))
    texts, way = random_ids(2, 40, seed=1).tolist(), Repeat(16, 2)
    found = score_heads(model, texts, way)
    assert found.shape == (2, 3, 4)
    assert bool(((found > 0) & (found <= 1)).all())
    alone = score_heads(model, texts[1:], way)
    torch.testing.assert_close(found[1], alone[0])
    with pytest.raises(UserError, match="give at least one"):
        score_heads(model, [], way)
    with pytest.raises(UserError, match=r"layers 0, 2 .sliding window. of this model are not"):
        score_heads(CateKVModel(tiny_model("gemma3")), texts, way)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_gate_learns_what_can_be_learnt(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 6, generator=generator)
    targets = inputs @ torch.randn(6, 2, generator=generator) - 7
    network = fit(inputs, targets, GateSettings(kind, hidden=16, batch_tokens=64))
    found = Gates((network,)).scores(0, inputs[None])[0].T
    assert float((found - targets).square().mean()) < 0.1
    again = fit(inputs, targets, GateSettings(kind, hidden=16, batch_tokens=64))
    assert all(map(torch.equal, network[0], again[0]))


def test_gates_are_trained_for_every_layer_and_serve_the_method(tmp_path: Path) -> None:
    model = CateKVModel(tiny_model("llama"))
    texts = random_ids(6, 50, seed=2).tolist()
    gates = train_gates(
        model, texts[:5], texts[5:], GateSettings("linear", tokens=30), meta={"model": "tiny"}
    )
    assert gates.sizes == (64, 4, None)
    assert len(gates.meta["explained"]) == 3
    assert all(math.isfinite(share) and share <= 1 for share in gates.meta["explained"])
    gates.save(tmp_path)
    method = methods.create("kvzap", predictor=tmp_path, keep=0.5, window=4)
    context = model.prefill(texts, method=method)
    assert context.kept_share() == pytest.approx(0.5)
    with pytest.raises(UserError, match="are for 3 layers x 4 KV heads but the"):
        CateKVModel(tiny_model("yi")).prefill(texts, method=method)
    with pytest.raises(UserError, match="one to measure on"):
        train_gates(model, texts, [])


def test_the_commands_make_gates_and_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates, masks = str(tmp_path / "gates"), str(tmp_path / "masks")
    train = ["kvzap", "train", *TEXTS, "--output", gates, "--samples", "2", "--kind", "linear"]
    assert cli.main(train) == 0
    assert cli.main(["kvzap", "show", gates]) == 0
    assert "2 pieces of 100 tokens of prose" in capsys.readouterr().out
    file = Path(gates, "config.json")
    content = json.loads(file.read_text())
    for damage in ({"texts": 3}, {"explained": "x"}):
        file.write_text(json.dumps({**content, "meta": {**content["meta"], **damage}}))
        assert cli.main(["kvzap", "show", gates]) == 2
        assert "does not say how its gates were made" in capsys.readouterr().err
    file.write_text(json.dumps(content))
    assert cli.main(train) == 2
    assert "holds gates; use --overwrite" in capsys.readouterr().err
    twice = [*train, "--overwrite", "--text", "prose", "prose"]
    assert cli.main(twice) == 2
    assert "--text holds prose twice" in capsys.readouterr().err
    diverging = ["--kind", "mlp", "--learning-rate", "1e30", "--output", str(tmp_path / "other")]
    assert cli.main([*train, *diverging]) == 2
    assert "training the gates diverged" in capsys.readouterr().err
    assert not list((tmp_path / "other").glob("*"))
    assert cli.main([*train, "--overwrite", "--samples", "1"]) == 2
    assert "1 piece of text is too little" in capsys.readouterr().err
    heads = str(tmp_path / "heads.npz")
    assert cli.main(["heads", "kvzip", *TEXTS, "--samples", "2", "--output", heads]) == 0
    scores = HeadScores.load(heads)
    assert scores.shape == (4, 4)
    assert (scores.scores == scores.samples.max(axis=0)).all()
    words = ["mask", "convert", heads, masks, "--ratios"]
    assert cli.main([*words, "0.25", "--strict"]) == 0
    strict = HeadMask.load(masks, 0.25)
    assert int(strict.adaptive.sum()) == 3
    assert strict.meta["recipe"]["kind"] == "kvzip"
    assert cli.main([*words, "0.5"]) == 0
    assert int(HeadMask.load(masks, 0.5).adaptive.sum()) == 8
