"""Checkpoints whose weights are not those of their configuration are refused, not filled up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint
from torch import Tensor

from catekv.commands.cli import main
from catekv.errors import UserError
from catekv.model import CateKVModel

Weights = dict[str, Tensor]


def load(folder: Path) -> CateKVModel:
    return CateKVModel.from_pretrained(folder, "streaming_llm", budget=24)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    weights = change({name: tensor.clone() for name, tensor in load_file(file).items()})
    save_file(weights, file, metadata={"format": "pt"})


def configure(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def layers_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


def test_a_sound_checkpoint_loads(checkpoint: Path):
    assert load(checkpoint).shape.layers == layers_of(checkpoint)


@pytest.mark.parametrize("change", [1, -1])
def test_more_or_fewer_layers_than_configured(change: int, checkpoint: Path):
    configure(checkpoint, num_hidden_layers=layers_of(checkpoint) + change, layer_types=None)
    with pytest.raises(UserError, match=r"no checkpoint of its configuration: it (lacks|has more)"):
        load(checkpoint)


def test_a_weight_is_missing(checkpoint: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(checkpoint, lambda weights: {key: weights[key] for key in weights if key != name})
    with pytest.raises(UserError, match=f"lacks {name}; load a complete one"):
        load(checkpoint)


def test_a_weight_without_a_place(checkpoint: Path):
    extra = {"model.layers.0.self_attn.q_proj.scale": torch.ones(1)}
    rewrite(checkpoint, lambda weights: {**weights, **extra})
    with pytest.raises(UserError, match=r"has more than its configuration says: .*q_proj\.scale"):
        load(checkpoint)


def test_what_lies_outside_of_the_decoder_does_not_matter(checkpoint: Path):
    extra = {"vision.layers.0.weight": torch.ones(1), "value_head.weight": torch.ones(1)}
    rewrite(checkpoint, lambda weights: {**weights, **extra})
    load(checkpoint)


def test_a_weight_of_another_shape(checkpoint: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(checkpoint, lambda weights: {**weights, name: weights[name][:, :-1].contiguous()})
    with pytest.raises(UserError, match=r"up_proj|another shape|size mismatch"):
        load(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, checkpoint: Path):
    rewrite(
        checkpoint,
        lambda weights: {key: torch.full_like(one, value) for key, one in weights.items()},
    )
    with pytest.raises(UserError, match="logits that are not finite"):
        load(checkpoint)


@pytest.mark.parametrize("value", [{}, "long", [1]])
def test_a_tokenizer_whose_longest_text_is_no_number(value: object, checkpoint: Path):
    file = checkpoint / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": value}))
    with pytest.raises(UserError, match=r"has model_max_length .*, no number; correct its"):
        load(checkpoint)


@pytest.mark.parametrize("command", ["check", "calibrate"])
def test_commands_on_text_want_a_tokenizer(
    command: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    model = [str(checkpoint)] if command == "check" else ["--model", str(checkpoint)]
    assert main([command, *model, "--quick", "--output", str(tmp_path / "out")]) == 2
    assert "has no tokenizer; tasks are text" in capsys.readouterr().err
