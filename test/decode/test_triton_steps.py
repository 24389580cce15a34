"""A whole model decoding through the triton kernels, in triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import left_padding, random_ids
from tiny_models import KeepEverything, RandomKeep, tiny_model

from catekv import kernels
from catekv.cache.cache import RaggedCache
from catekv.decode.step import DecodeStep, EagerStep
from catekv.kernels.dispatch import VARIABLE, has_triton
from catekv.model import CateKVModel
from catekv.prefill import layerwise

pytestmark = pytest.mark.skipif(not has_triton(), reason="triton is not installed")

LAYERS, PROMPT, QUESTION, STEPS = 2, 20, 2, 2


@pytest.fixture(scope="module")
def model() -> Any:
    """Small: the interpreter takes its time."""
    return tiny_model("yi", num_hidden_layers=LAYERS, num_attention_heads=4)


@torch.no_grad()
def logits_of_two_turns(model: Any, method: Any, fixed: bool) -> list[torch.Tensor]:
    """A question of several tokens over a padded, compressed prompt of two, and decode steps."""
    mask = left_padding(2, PROMPT)
    cache = RaggedCache(model.config, method, PROMPT)
    layerwise.prefill(model, random_ids(2, PROMPT, seed=0), cache, mask)
    mask = torch.cat([mask, left_padding(2, QUESTION).flip(0)], dim=1)
    mask[0, PROMPT] = 0
    positions = layerwise.positions_of(mask)[:, -QUESTION:]
    found = [
        model(
            random_ids(2, QUESTION, seed=1),
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions,
        ).logits[:, -1]
    ]
    step: Any = EagerStep(model, cache, mask)
    if fixed:
        step = DecodeStep(model, cache, 8, graph="off", attention_mask=mask)
    for seed in range(STEPS):
        found.append(step(random_ids(2, 1, seed=2 + seed)).clone())
    return found


@pytest.mark.parametrize(
    ("fixed", "method"),
    [
        pytest.param(False, RandomKeep(0.5), id="growing tails"),
        pytest.param(True, RandomKeep(0.5), id="fixed tails"),
        pytest.param(True, KeepEverything(), id="everything kept", marks=pytest.mark.slow),
    ],
)
def test_kernels_give_the_logits_of_the_torch_path(
    model: Any, fixed: bool, method: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, "torch")
    expected = logits_of_two_turns(model, method, fixed)
    monkeypatch.setenv(VARIABLE, "triton")
    for actual, wanted in zip(logits_of_two_turns(model, method, fixed), expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=0)


def test_a_uniform_prefix_goes_through_the_kernel_where_there_is_one(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    """On the torch path it is the very call of an ordinary cache; a kernel needs no such call."""
    wrapped = CateKVModel(model, KeepEverything())
    context = wrapped.prefill(random_ids(1, PROMPT, seed=0))
    calls = 0
    ragged_decode = kernels.ragged_decode

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        assert options["workspace"] is not None
        return ragged_decode(*arguments, **options)

    monkeypatch.setattr(kernels, "ragged_decode", counted)
    expected = wrapped.generate_ids([], context, 3, []).tokens
    assert calls == 0
    monkeypatch.setenv(VARIABLE, "triton")
    assert wrapped.generate_ids([], context, 3, []).tokens == expected
    assert calls == 2 * LAYERS


def test_steps_share_the_scratch_memory_of_their_cache(model: Any, monkeypatch: pytest.MonkeyPatch):
    """After the first step nothing more is allocated, in any layer."""
    monkeypatch.setenv(VARIABLE, "triton")
    cache = RaggedCache(model.config, RandomKeep(0.5), PROMPT)
    layerwise.prefill(model, random_ids(1, PROMPT, seed=0), cache)
    step = DecodeStep(model, cache, 8, graph="off")
    step(torch.tensor([[5]]))
    scratch = cache.settings.workspace.tensors()
    assert scratch
    step(torch.tensor([[6]]))
    again = cache.settings.workspace.tensors()
    assert all(new is old for new, old in zip(again, scratch, strict=True))
    fork = cache.fork()
    assert fork.stored_bytes() < cache.stored_bytes()
