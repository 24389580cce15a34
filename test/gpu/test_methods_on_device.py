"""Every method and store on the device against the same model on the CPU, twelve tokens."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import DEVICE, MUST_ASK, TINY, relative_error
from scenarios import left_padding, random_ids
from tiny_models import tiny_model
from torch import Tensor

from catekv import CateKVModel, methods
from catekv.decode.step import DecodeStep
from catekv.kernels.dispatch import VARIABLE
from catekv.methods import Method

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "methods"))
from test_method_matrix import CASES, windowed

PROMPT, STEPS, KV_HEADS, HEADS, HEAD_DIM = 48, 3 if TINY else 12, 2, 4, 64
#: Logits of a few layers on another device, with products in float32; and with weights in bfloat16.
TOLERANCE, HALF_TOLERANCE = 2e-4, 2e-2
#: Stores that no method of the matrix has by itself.
STORES = {f"snapkv/{store}": windowed(store=store) for store in ("int8", "fp8", "int4")}
ALL = {**CASES, **STORES}
NAMES = ["full", "catekv", "catekv/quest", "snapkv/offload", "h2o"] if TINY else sorted(ALL)
#: (batch, chunk size): batches are padded.
SETTINGS = [(1, None), (3, 13)]
#: Methods whose choice does not hang on rounding.
BY_PLACE = ["full", "streaming_llm", "sliding_window"]


@functools.cache
def models(layers: int, dtype: torch.dtype) -> tuple[CateKVModel, CateKVModel]:
    """The same weights on the CPU, in float32, and on the device, in ``dtype``."""
    model = tiny_model(
        "llama", num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        hidden_size=HEADS * HEAD_DIM, intermediate_size=64,
    ).to(dtype)  # fmt: skip
    other = copy.deepcopy(model).to(DEVICE)
    return CateKVModel(model.float()), CateKVModel(other)


def made(name: str) -> Method:
    shape = models(ALL[name].layers, torch.float32)[0].shape
    return methods.create(name.split("/")[0], **ALL[name].options("small", shape))


@torch.no_grad()
def logits_of(
    model: CateKVModel, name: str, batch: int, chunk_size: int | None, graph: str
) -> tuple[Tensor, DecodeStep]:
    """[steps + 1, batch, vocabulary] of the prompt and of tokens fed one by one."""
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    place = model.device
    context = model.prefill(
        random_ids(batch, PROMPT, seed=0).to(place), chunk_size, made(name),
        attention_mask=None if mask is None else mask.to(place),
    )  # fmt: skip
    # small, so that it has to grow
    step = DecodeStep(
        model.model, context.cache.fork(), 4, graph=graph, attention_mask=context.attention_mask
    )
    found = [context.last_logits]
    for number in range(STEPS):
        found.append(step(random_ids(batch, 1, seed=1 + number).to(place)).clone())
    return torch.stack(found), step


@functools.cache
def on_cpu(name: str, batch: int, chunk_size: int | None, dtype: torch.dtype) -> Tensor:
    return logits_of(models(ALL[name].layers, dtype)[0], name, batch, chunk_size, "off")[0]


def on_device(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, *setting: Any
) -> tuple[Tensor, DecodeStep]:
    if MUST_ASK:
        monkeypatch.setenv(VARIABLE, "triton")
    return logits_of(models(ALL[name].layers, dtype)[1], name, *setting)


@pytest.mark.parametrize("graph", ["off", "auto"])
@pytest.mark.parametrize(("batch", "chunk_size"), SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_cpu(
    name: str, batch: int, chunk_size: int | None, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = on_cpu(name, batch, chunk_size, torch.float32)
    found, step = on_device(monkeypatch, name, torch.float32, batch, chunk_size, graph)
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert relative_error(ours, theirs) <= TOLERANCE, f"after {number} tokens ({step.reason})"


@pytest.mark.parametrize("graph", ["off", "auto"])
@pytest.mark.parametrize("name", BY_PLACE)
def test_bfloat16_stays_close(name: str, graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if TINY:
        pytest.skip("bfloat16 arithmetic is wrong in triton's interpreter")
    wanted = on_cpu(name, 3, None, torch.bfloat16)
    found, _ = on_device(monkeypatch, name, torch.bfloat16, 3, None, graph)
    assert relative_error(found, wanted) <= HALF_TOLERANCE


@pytest.mark.parametrize("name", ["full", "catekv", "snapkv", "streaming_llm"])
def test_plain_steps_are_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if MUST_ASK:
        pytest.skip("a CPU records nothing")
    _, step = on_device(monkeypatch, name, torch.float32, 1, None, "auto")
    assert step.captured, step.reason


@pytest.mark.parametrize("name", ["full", "catekv"])
def test_answers_are_those_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is recorded after some tokens of an answer; a second question goes on with it."""
    tokens = []
    for index, model in enumerate(models(ALL[name].layers, torch.float32)):
        if index and MUST_ASK:
            monkeypatch.setenv(VARIABLE, "triton")
        prompt = random_ids(1, PROMPT, seed=0).to(model.device)
        context = model.prefill(prompt, method=made(name))
        questions: list[list[int]] = [[5], [7, 8, 9]]
        length = STEPS + 8 * (not TINY)
        tokens.append(
            [model.generate_ids(question, context, length, []).tokens for question in questions]
        )
    assert tokens[0] == tokens[1]
