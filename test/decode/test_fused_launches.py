"""How many kernels a decode step launches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from launches import launches
from scenarios import random_ids
from tiny_models import RandomKeep, tiny_model

from catekv.decode.step import DecodeStep
from catekv.kernels.dispatch import VARIABLE, has_triton
from catekv.model import CateKVModel

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed")

PROMPT = 12


def of_a_step(family: str, layers: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Launches of one step of a model with so many layers."""
    inner = tiny_model(
        family, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2
    )
    # half precision, in which models are run: types are converted back and forth
    model = CateKVModel(inner.half(), RandomKeep())
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    step = DecodeStep(model.model, context.cache, 8, graph="off", fused_step=mode)
    assert step.fused == (mode == "on"), step.fused_reason
    # only what is counted runs in the interpreter, which takes its time
    monkeypatch.setenv(VARIABLE, "triton")
    with launches(monkeypatch) as found:
        step(torch.tensor([[6]]))
    monkeypatch.undo()
    return found


def of_a_layer(family: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    one, two = (of_a_step(family, layers, mode, monkeypatch) for layers in (1, 2))
    return two - one


@pytest.mark.parametrize(
    ("family", "most"),
    [
        ("llama", 10),
        ("glm4", 12),
        *(
            pytest.param(family, 10, marks=pytest.mark.slow)
            for family in ("mistral", "qwen2", "qwen3", "phi3")
        ),
    ],
)
def test_a_fused_layer_launches_few_kernels(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = of_a_layer(family, "on", monkeypatch)
    assert found.total() == most, found
    kernels = {name: count for name, count in found.items() if not name.startswith("aten::")}
    norms = 4 if family == "glm4" else 2
    assert kernels == {
        "_rms_norm": norms, "_rotary_append": 1, "_decode": 1, "_reduce": 1, "_silu_multiply": 1
    }  # fmt: skip


def test_a_layer_of_modules_launches_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same count of the model's own forward: what the fused step saves."""
    assert of_a_layer("llama", "off", monkeypatch).total() >= 36
