"""The training script of the embedded model works: a tiny variant, a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv.errors import UserError
from catekv.models import embedded
from experiments.embedded.card import accuracy_table, wilson
from experiments.embedded.network import build_config, hidden_states, logits
from experiments.embedded.optimiser import orthogonalise
from experiments.embedded.train import Recipe, Trainer, cooling, document_length, rate_factor, run

RECIPE = Recipe(steps=4, cooldown=2, long_steps=0, seed=3, tokens=256, dtype="float32")


def tiny() -> Any:
    return build_config(
        num_hidden_layers=3,
        hidden_size=128,
        intermediate_size=64,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
    )


def test_lean_forward_equals_transformers() -> None:
    trainer = Trainer(RECIPE, tiny())
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, trainer.config.vocab_size, (2, 400), generator=generator)
    jumps = torch.randint(1, 5, (2, 400), generator=generator).cumsum(1)
    with torch.no_grad():
        expected = trainer.model(tokens, position_ids=jumps).logits
        for length in (400, 100):  # fused and plain attention
            hidden = hidden_states(
                trainer.weights, trainer.config, tokens[:, :length], jumps[:, :length]
            )
            difference = logits(trainer.weights, hidden) - expected[:, :length]
            assert difference.abs().max() < 1e-4


def brief(trainer: Trainer, folder: Path, **options: Any) -> list[dict[str, float]]:
    """Train in ``folder``; the probe at the end is as small as it can be."""
    return run(trainer, folder / "out", folder / "work", probe_length=64, probe_count=1, **options)


def test_loss_falls_and_the_checkpoint_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = replace(RECIPE, steps=12, tokens=512)
    trainer = Trainer(recipe, tiny())
    before = trainer.gradients(0, 0)[1]
    curve = brief(trainer, tmp_path, report_every=6)
    assert [row["step"] for row in curve] == [6, 12]
    assert trainer.gradients(0, 0)[1] < 0.8 * before
    assert (tmp_path / "out" / "curve.csv").read_text().startswith("step,seconds,answer_loss")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    for name, weight in model.named_parameters():
        assert torch.equal(weight, trainer.weights[name].bfloat16().float()), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("note zovof 94 30 02 . ask zovof ?", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] > 10


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Trainer(RECIPE, tiny())
    brief(whole, tmp_path / "whole", report_every=3)
    brief(Trainer(RECIPE, tiny()), tmp_path / "halved", stop_after=2)
    assert not (tmp_path / "halved" / "out").exists()
    resumed = Trainer(RECIPE, tiny())
    brief(resumed, tmp_path / "halved", resume=True)
    for name, weight in whole.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_only_a_run_before_its_cooldown_may_be_given_another_end(tmp_path: Path) -> None:
    brief(Trainer(RECIPE, tiny()), tmp_path, stop_after=2)
    longer = Trainer(replace(RECIPE, steps=8, cooldown=4, long_steps=5), tiny())
    longer.load_state(tmp_path / "work" / "state.pt")
    assert longer.next_step == 2
    for other in (replace(RECIPE, seed=4), replace(RECIPE, cooldown=4)):
        with pytest.raises(UserError, match="another recipe"):
            Trainer(other, tiny()).load_state(tmp_path / "work" / "state.pt")


def test_rates_and_lengths_follow_the_recipe() -> None:
    recipe = Recipe(steps=2000, cooldown=800, long_steps=100, long_rate=0.3)
    assert cooling(recipe, 1200) == 0 < cooling(recipe, 1201)
    assert rate_factor(recipe, 0) == pytest.approx(1 / 50)
    assert rate_factor(recipe, 1000) == 1.0
    assert 0.02 < rate_factor(recipe, 1999) < 0.03
    assert rate_factor(recipe, 2000) == 0.3
    assert 0.005 < rate_factor(recipe, 2099) < 0.01
    assert min(document_length(recipe, step) for step in range(2000, 2100)) == 512
    assert {document_length(recipe, step) for step in range(180)} == {64, 128}
    assert 4096 in {document_length(recipe, step) for step in range(1900, 2000)}


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 32, 64), (2, 64, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape, generator=generator)))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_intervals_and_the_table_of_the_card() -> None:
    assert wilson(100, 100) == (pytest.approx(0.9630, abs=1e-4), 1.0)
    assert wilson(0, 100)[0] == 0.0
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    scores = {
        "vt 1024": {"official": [1.0, 1.0], "strict": [1.0, 1.0]},
        "fwe 1024": {"official": [1.0, 1.0], "strict": [1.0, 0.5]},
    }
    table, shortfall = accuracy_table(scores)
    assert "| vt | 100.0 (100: 34 to 100) | 2 |" in table
    assert "| fwe | 75.0 (50: 9 to 91) | 2 |" in table
    assert shortfall == "Below 95 %: fwe at 1024 (75.0)."


def test_a_missing_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_package", lambda: tmp_path / "catekv")
    with pytest.raises(UserError, match=r"no embedded model at .*experiments\.embedded\.train"):
        embedded.path()
