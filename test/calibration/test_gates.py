"""DuoAttention's gates: what they are trained by, and on which texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from catekv.calibration.heads import gates
from catekv.calibration.heads.gates import GateTraining, gate_loss, rate_factor, streaming_mask
from catekv.calibration.heads.head_scores import HeadScores
from catekv.calibration.heads.passkeys import passkey_text
from catekv.commands import cli
from catekv.errors import UserError
from catekv.model import CateKVModel

EMBEDDED = Path(__file__).parents[2] / "ckpt" / "embedded"
Golden = Callable[[str, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def embedded() -> CateKVModel:
    return CateKVModel.from_pretrained(EMBEDDED, method="full")


def test_the_loss_is_that_of_the_reference(golden: Golden) -> None:
    for case in golden("methods_2026", "duo_loss"):
        given = case["inputs"]
        tables = (torch.tensor(given[name]) for name in ("full", "mixed"))
        found = gate_loss(
            *tables, torch.tensor(given["labelled"]).bool(), torch.tensor(given["gates"]),
            given["weight"],
        )  # fmt: skip
        for name, value in case["expected"].items():
            assert float(getattr(found, name)) == pytest.approx(value, abs=1e-5)


def test_the_rate_is_that_of_the_reference(golden: Golden) -> None:
    for case in golden("methods_2026", "duo_rate"):
        total, steps = case["inputs"]["total"], case["inputs"]["steps"]
        found = [rate_factor(step, total) for step in steps]
        assert found == pytest.approx(case["expected"]["factor"])


@pytest.mark.parametrize("length", [160, 400])
def test_a_text_holds_every_fact_and_asks_for_it_behind_the_prose(
    embedded: CateKVModel, length: int
) -> None:
    tokenizer = embedded.tokenizer
    text = passkey_text(tokenizer, length, 3, 1, seed=1, index=0)
    assert length - 25 < len(text.ids) <= length
    before = tokenizer.decode(text.ids[: -text.labelled])
    end = tokenizer.decode(text.ids[-text.labelled :])
    assert before.count("note") == end.count("note") == 3
    answers = [part.split(" .")[0] for part in end.split("note ")[1:]]
    assert all(f"note {answer} ." in before for answer in answers)
    assert text == passkey_text(tokenizer, length, 3, 1, seed=1, index=0)
    assert text != passkey_text(tokenizer, length, 3, 1, seed=1, index=1)


def test_a_length_that_does_not_hold_the_questions_is_refused(embedded: CateKVModel) -> None:
    with pytest.raises(UserError, match=r"more than the length of 40; give a larger --length"):
        passkey_text(embedded.tokenizer, 40, 5, 1, seed=1, index=0)


def test_streaming_heads_see_first_and_last_tokens() -> None:
    seen = streaming_mask(6, 1, 2, torch.device("cpu"))
    assert seen[5].tolist() == [True, False, False, False, True, True]
    assert seen[1].tolist() == [True, True, False, False, False, False]


def test_open_gates_change_nothing_and_closed_ones_are_streaming_heads() -> None:
    model = CateKVModel(tiny_model("llama"))
    ids = torch.arange(3, 27)[None]
    body = model.model.base_model
    with torch.no_grad():
        full = body(input_ids=ids, use_cache=False).last_hidden_state
        everything = torch.ones(model.shape.layers, model.shape.kv_heads)
        seen = streaming_mask(24, 2, 4, ids.device)
        with gates._gated(model, everything, seen):
            torch.testing.assert_close(body(input_ids=ids, use_cache=False).last_hidden_state, full)
        with gates._gated(model, 0 * everything, seen):
            closed = body(input_ids=ids, use_cache=False).last_hidden_state
        masked = torch.where(seen, 0.0, -torch.inf)[None, None]
        wanted = body(input_ids=ids, attention_mask=masked, use_cache=False).last_hidden_state
    torch.testing.assert_close(closed, wanted)
    assert not torch.allclose(closed, full)


def test_layers_that_do_not_see_the_whole_text_are_refused() -> None:
    model = CateKVModel(tiny_model("gemma3"))
    with pytest.raises(UserError, match=r"layers 0, 2 .sliding window. of this model are not"):
        gates.train_gates(model, GateTraining())


def test_heads_that_no_text_needs_close(tmp_path: Path, embedded: CateKVModel) -> None:
    """The embedded model reads facts with few of its heads."""
    settings = GateTraining(
        steps=12, length=192, passkeys=3, codes=1, sinks=4, recent=16, rate=0.2, seed=3
    )
    losses: list[float] = []
    found = gates.train_gates(embedded, settings, advance=losses.append)
    assert found.scores.min() == 0
    assert found.scores.max() > 0.5
    assert len(losses) == 12
    loaded = HeadScores.load(found.save(tmp_path / "gates.npz"))
    assert loaded.recipe["kind"] == "duo_gates"
    assert (loaded.scores == found.scores).all()
    again = gates.train_gates(embedded, settings)
    assert (again.scores == found.scores).all()


def test_the_command_refuses_a_text_that_streaming_heads_see_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["heads", "gates", "--length", "300", "--output", str(tmp_path / "gates.npz")]
    assert cli.main(words) == 2
    said = "--sinks 128 and --recent 256 are the whole of a length of 300"
    assert said in capsys.readouterr().err


def test_the_rewarded_weight_is_that_of_the_reference(golden: Golden) -> None:
    for case in golden("methods_2026", "rlkv_weight"):
        given = case["inputs"]
        found = [
            gates.rewarded_weight(given["beta"], reward, given["tau"])
            for reward in given["rewards"]
        ]
        assert found == pytest.approx(case["expected"]["weights"], abs=1e-9)


def test_gates_are_penalised_only_while_the_answers_stay(embedded: CateKVModel) -> None:
    settings = GateTraining(
        steps=2, length=192, passkeys=3, codes=1, sinks=4, recent=16, rate=0.2, reward=1.0
    )
    # never above a reward of 1: nothing closes a gate
    assert gates.train_gates(embedded, settings).scores.min() > 0.99
    assert gates.train_gates(embedded, replace(settings, reward=0.5)).scores.min() < 0.9
