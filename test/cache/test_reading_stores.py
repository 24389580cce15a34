"""Models whose caches read a part of what they store, or store it elsewhere or in fewer bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import (
    PROMPT,
    largest_difference,
    left_padding,
    random_ids,
    two_turns,
    with_attention,
)
from tape import tapes  # noqa: F401
from tiny_models import LAYERS
from torch import Tensor

from catekv import methods
from catekv.cache.cache import RaggedCache
from catekv.decode.step import DecodeStep, EagerStep
from catekv.methods.head_mask import HeadMask
from catekv.prefill import layerwise

MASK = HeadMask(torch.tensor([[0, 1, 1, 0]] * LAYERS), {"ratio": 0.5})
CATEKV = {"head_mask": MASK, "budget": 20, "window": 4, "chunk_size": 4, "init_tokens": 4,
          "recent_tokens": 8, "guard_tokens": 4}  # fmt: skip
SHADOW = {"chunk": 4, "outliers": 2, "local": 1}
ROCKET = {"budget": 16, "window": 4, "kernel": 5}
SNAPKV = {"budget": (6, 10, 8, 12), "window": 4, "kernel": 3}
CASES: dict[str, methods.Method] = {
    "quest": methods.create("quest", budget=16, page=4, full_layers=1),
    "rocketkv": methods.create("rocketkv", **ROCKET),
    "rocketkv, several turns": methods.create("rocketkv", **ROCKET, multi_turn=True),
    "shadowkv": methods.create("shadowkv", budget=12, rank=12, **SHADOW),
    "catekv and quest": methods.create("catekv", read="quest", **CATEKV),
    "catekv and shadowkv": methods.create(
        "catekv", read="shadowkv", rank=6, outliers=2, local=1, **CATEKV
    ),
    "snapkv, offloaded": methods.create("snapkv", store="offload", **SNAPKV),
    "snapkv, int8": methods.create("snapkv", store="int8", **SNAPKV),
    "snapkv, fp8": methods.create("snapkv", store="fp8", **SNAPKV),
    "full, int4": methods.create("full", store="int4"),
}
#: the others ask the host in every step, or let a question change what steps read
RECORDED = ["quest", "rocketkv", "catekv and quest", "snapkv, int8", "snapkv, fp8",
            "full, int4"]  # fmt: skip


def context(
    model: Any, method: methods.Method, batch: int
) -> tuple[RaggedCache, Tensor, Tensor | None]:
    """A compressed prompt, its last logits and its mask; several sequences have padding."""
    cache = RaggedCache(model.config, method, PROMPT)
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    logits = layerwise.prefill(model, random_ids(batch, PROMPT, seed=0), cache, mask)
    return cache, logits, mask


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_padded_batch_equals_its_single_prompts(name: str):
    model = with_attention("llama", "catekv")
    cache, _, mask = context(model, CASES[name], 3)
    ids = random_ids(3, PROMPT, seed=0)
    new = [random_ids(3, width, seed=5 + i) for i, width in enumerate((5, 1, 1))]
    seen = mask
    together = []
    for step in new:
        seen = torch.cat([seen, torch.ones_like(step)], dim=1)
        positions = layerwise.positions_of(seen)[:, -step.shape[1] :]
        output = model(step, past_key_values=cache, attention_mask=seen, position_ids=positions)
        together.append(output.logits[:, -1])
    for row in range(3):
        padding = 5 * row
        alone = RaggedCache(model.config, CASES[name], PROMPT - padding)
        layerwise.prefill(model, ids[row : row + 1, padding:], alone)
        for step, expected in zip(new, together, strict=True):
            found = model(step[row : row + 1], past_key_values=alone).logits[:, -1]
            torch.testing.assert_close(found[0], expected[row], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_step_decodes_what_ordinary_forwards_decode(name: str, batch: int):
    """Which pages a step reads is decided on the device."""
    model = with_attention("llama", "catekv")
    cache, logits, mask = context(model, CASES[name], batch)
    ordinary = EagerStep(model, cache.fork(), mask)
    step = DecodeStep(model, cache, 20, attention_mask=mask)
    assert step.captured, step.reason
    for _ in range(5):
        tokens = logits.argmax(dim=-1, keepdim=True)
        logits = ordinary(tokens)
        torch.testing.assert_close(step(tokens), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["shadowkv", "snapkv, offloaded"])
def test_a_step_that_asks_the_host_is_not_recorded(name: str):
    model = with_attention("llama", "catekv")
    cache, _, _ = context(model, CASES[name], 1)
    step = DecodeStep(model, cache, 20)
    assert not step.captured
    assert "on the host" in step.reason


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3-long"])
@torch.no_grad()
def test_with_full_rank_shadows_answer_questions_as_full_attention_does(family: str):
    model = with_attention(family, "catekv")
    ids, question = random_ids(1, PROMPT, seed=0), random_ids(1, 7, seed=1)
    found = []
    for method in (methods.create("full"), methods.create("shadowkv", budget=12, **SHADOW)):
        cache = RaggedCache(model.config, method, PROMPT)
        layerwise.prefill(model, ids, cache)
        found.append(model(question, past_key_values=cache).logits[0])
    assert method.rank >= model.config.hidden_size
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["quest", "rocketkv", "shadowkv", "catekv and quest"])
def test_budgets_as_large_as_the_prompt_equal_full_attention(name: str):
    model = with_attention("llama", "catekv")
    large = {**CASES[name].to_dict(), "budget": PROMPT}
    if name.startswith("catekv"):
        large |= {"head_mask": HeadMask(torch.ones(LAYERS, 4)), "ratio": 1.0}
    caches = [RaggedCache(model.config, methods.from_dict(large), PROMPT),
              RaggedCache(model.config, methods.create("full"), PROMPT)]  # fmt: skip
    results = [two_turns(model, cache) for cache in caches]
    assert largest_difference(*results) < 1e-5


def test_what_steps_read_changes_what_models_say():
    """None of the comparisons above is one of a thing with itself."""
    model = with_attention("llama", "catekv")
    full = two_turns(model, RaggedCache(model.config, methods.create("full"), PROMPT))
    for name in ("quest", "shadowkv", "rocketkv, several turns"):
        found = two_turns(model, RaggedCache(model.config, CASES[name], PROMPT))
        assert largest_difference(found, full) > 1e-3


def test_offloaded_decodes_exactly_what_the_device_decodes():
    model = with_attention("llama", "catekv")
    here = two_turns(model, RaggedCache(model.config, methods.create("snapkv", **SNAPKV), PROMPT))
    moved = two_turns(model, RaggedCache(model.config, CASES["snapkv, offloaded"], PROMPT))
    assert largest_difference(here, moved) == 0


@pytest.mark.parametrize("name", CASES)
def test_stored_bytes_are_those_of_the_stores(name: str):
    model = with_attention("llama", "catekv")
    cache, _, _ = context(model, CASES[name], 1)
    held = {}
    for layer in cache.ragged_layers:
        own = layer.prefix.tensors() if layer.store is None else layer.store.tensors()
        for tensor in own:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
    assert cache.stored_bytes() >= sum(held.values())
    if name.endswith("int8"):
        plain, _, _ = context(model, methods.create("snapkv", **SNAPKV), 1)
        assert cache.stored_bytes() < 0.6 * plain.stored_bytes()
