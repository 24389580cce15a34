"""Parity with an independent implementation: what kvpress 0.5.5 does on the same random model.

Its variants are set with options: window 64, average pooling over 5, mean over the query group,
budgets that hold the window, AdaKV's safeguard taken from the whole capacity. The fixtures come
from ``test/fixtures/kvpress/make_fixtures.py``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from catekv import CateKVModel, RaggedCache, methods, register_attention
from catekv.methods import Method
from catekv.methods.formulas.budgets import pyramid_budgets
from catekv.methods.formulas.scoring import window_token_scores

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "kvpress"
#: Of 256 tokens half are removed: 128 per head, the window of 64 among them.
WINDOW = {"window": 64, "kernel": 5, "pooling": "average"}
OPTIONS: dict[str, dict[str, Any]] = {
    "snapkv": {**WINDOW, "budget": 64},
    # 80 to 176 tokens with the window are 16 to 112 without it: lowest budget 64 / 4
    "pyramidkv": {**WINDOW, "budget": 64, "beta": 4, "step": "fractional"},
    "adakv": {**WINDOW, "budget": 64, "safeguard": "reserved", "floor": 0.75},
    "streaming_llm": {"budget": 128, "sinks": 4},
    "duo_attention": {"streaming_share": 0.5, "sinks": 8, "recent": 24},
}
EXPECTED = {"sinks": 4, "future": 64}
#: Those that look at values, hidden states or all queries: method and options.
BY_MODEL: dict[str, tuple[str, dict[str, Any]]] = {
    "knorm": ("knorm", {}),
    "keydiff": ("keydiff", {"block": 0}),
    "tova": ("tova", {"protect_last": True}),
    "chunkkv": ("chunkkv", {"base": "knorm", "chunk": 20}),
    "expected_attention": ("expected_attention", EXPECTED),
    "expected_attention-ada": ("expected_attention", {**EXPECTED, "floor": 0.2}),
    "criticalkv": (
        "criticalkv", {"base": {"name": "expected_attention", "value_norm": False, **EXPECTED}},
    ),
    "criticalkv-ada": (
        "criticalkv",
        {"base": {"name": "expected_attention", "value_norm": False, **EXPECTED, "floor": 0.2}},
    ),
}  # fmt: skip
#: A key that stands in for a dropped one must get no weight, or logits cannot be compared.
NO_WEIGHT = -30.0


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "fixtures.npz") as content:
        return dict(content)


@pytest.fixture(scope="module")
def small() -> ModuleType:
    """The module that makes the model, here and where the fixtures were made."""
    spec = importlib.util.spec_from_file_location("small_model", FOLDER / "small_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def method(name: str, stored: dict[str, np.ndarray]) -> Method:
    options = OPTIONS[name]
    if name == "duo_attention":
        options = {**options, "pattern": stored["duo_attention.gates"]}
    return methods.create(name, **options)


def kept(name: str, stored: dict[str, np.ndarray]) -> torch.Tensor:
    """bool [layers, kv_heads, tokens]"""
    return torch.from_numpy(np.unpackbits(stored[f"{name}.kept"], axis=-1)).bool()


def test_scores_agree(stored: dict[str, np.ndarray]) -> None:
    found = window_token_scores(
        torch.from_numpy(stored["queries"]),
        torch.from_numpy(stored["keys"]),
        8**-0.5,
        WINDOW["kernel"],
        WINDOW["pooling"],
    )
    torch.testing.assert_close(found, torch.from_numpy(stored["scores"]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OPTIONS)
def test_kept_sets_agree(name: str, stored: dict[str, np.ndarray]) -> None:
    ours, theirs = method(name, stored), kept(name, stored)
    queries, keys = torch.from_numpy(stored["queries"]), torch.from_numpy(stored["keys"])
    layers = len(theirs)
    for layer in range(layers):
        one = slice(layer, layer + 1)
        found = ours.select(queries[one], keys[one], keys[one], layer, layers)
        assert found.keep is not None
        assert torch.equal(found.keep[0], theirs[layer]), layer


def test_the_comparison_is_about_something(stored: dict[str, np.ndarray]) -> None:
    counts = {name: kept(name, stored).sum(dim=-1) for name in OPTIONS}
    assert counts["snapkv"].tolist() == [[128, 128]] * 4
    assert counts["pyramidkv"].tolist() == [[176, 176], [144, 144], [112, 112], [80, 80]]
    assert len(set(counts["adakv"].flatten().tolist())) > 4
    assert counts["adakv"].sum(dim=1).tolist() == [256] * 4
    assert counts["duo_attention"].tolist() == [[256, 32], [256, 256], [32, 32], [256, 32]]
    others = {name: kept(name, stored)[0] for name in ("snapkv", "adakv", "streaming_llm")}
    assert not torch.equal(others["snapkv"], others["streaming_llm"])
    assert not torch.equal(others["snapkv"], others["adakv"])


def test_pyramid_budgets_agree(stored: dict[str, np.ndarray]) -> None:
    # their formula splits what a head keeps with the window, by beta 1.6
    theirs = kept("pyramidkv", stored).sum(dim=-1)[:, 0]
    ours = pyramid_budgets(128, 4, 256, 64, beta=1.6, step="fractional")
    assert torch.equal(theirs, ours)


@torch.inference_mode()
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_of_a_question_agree(
    name: str, stored: dict[str, np.ndarray], small: ModuleType
) -> None:
    assert stored[f"{name}.highest"] < NO_WEIGHT
    register_attention()
    model, ids = small.small_model(), small.token_ids()
    model.set_attn_implementation("catekv")
    cache = RaggedCache(model.config, method(name, stored), prefill_tokens=small.TOKENS)
    model(ids[:, : small.TOKENS], past_key_values=cache)
    lengths = torch.stack([one[0] for one in cache.lengths()])
    assert torch.equal(lengths.long(), kept(name, stored).sum(dim=-1))
    found = model(ids[:, small.TOKENS :], past_key_values=cache).logits[0]
    torch.testing.assert_close(
        found, torch.from_numpy(stored[f"{name}.logits"]), rtol=1e-3, atol=1e-4
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", BY_MODEL)
def test_kept_sets_of_a_model_agree(
    name: str, stored: dict[str, np.ndarray], small: ModuleType
) -> None:
    kind, options = BY_MODEL[name]
    ours, theirs = methods.create(kind, budget=128, **options), kept(name, stored)
    model = CateKVModel(small.small_model())
    dense = model.observe(small.token_ids()[:, : small.TOKENS], needs=ours.needs)
    for layer, wanted in enumerate(theirs):
        found = ours.select_padded([dense.observed(layer)], None)[0]
        assert torch.equal(found.tokens[0], wanted), layer
    counts = theirs.sum(dim=-1)
    if name.endswith("-ada"):
        assert len(set(counts.flatten().tolist())) > 4
    else:
        assert len(set(counts[0].tolist())) == 1
    # the method that is compared keeps other tokens than the others do
    assert not any(torch.equal(theirs, kept(other, stored)) for other in BY_MODEL if other != name)
