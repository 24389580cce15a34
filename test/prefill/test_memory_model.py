"""The analytic model against the reference numbers."""

from __future__ import annotations

import pytest

from catekv.evaluation.plan import SpreadCateKV
from catekv.models.shape import ModelShape
from catekv.prefill.sizes import GB, GIB, MemoryModel


def test_memory_model_golden(golden) -> None:
    for case in golden("catekv", "memory_model"):
        given, expected = case["inputs"], case["expected"]
        model = MemoryModel(
            given["layers"],
            given["kv_heads"],
            given["head_dim"],
            given["params"],
            given["embedding_params"],
            given["bytes"],
        )
        tokens = given["tokens"]
        method = SpreadCateKV.at(
            given["r"],
            ModelShape(given["layers"], 32, given["kv_heads"], given["head_dim"]),
            retention=given["eta"],
            budget=given["budget"],
            init_tokens=given["init"],
            recent_tokens=given["recent"],
            guard_tokens=given["tail"],
        )
        kept = kept_per_head(method, tokens)
        found = {
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "kept_share": kept / tokens,
            "kv_full_gib": model.cache_bytes(tokens) / GIB,
            "kv_catekv_gib": model.cache_bytes(kept) / GIB,
            "resident_full_gib": model.resident_bytes(tokens) / GIB,
            "resident_catekv_gib": model.resident_bytes(kept) / GIB,
            "step_full_gb": model.step_bytes(tokens) / GB,
            "step_catekv_gb": model.step_bytes(kept) / GB,
            "decode_bound": model.decode_bound(tokens, kept),
        }
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), case["id"]


def kept_per_head(method: SpreadCateKV, tokens: int) -> float:
    shape = method.adaptive.mask.adaptive.shape
    table = method.budget_table(tokens, ModelShape(shape[0], 32, shape[1], 128))
    return float(table.double().mean())


def test_short_prompts_are_kept_whole() -> None:
    method = SpreadCateKV.at(0.4, ModelShape(32, 32, 8, 128))
    assert kept_per_head(method, 2000) == 2000
    assert kept_per_head(method, 2080) == 2080
    assert kept_per_head(method, 100_000) < 0.5 * 100_000


def test_the_largest_batch_bound_exceeds_that_of_a_single_sequence() -> None:
    model = MemoryModel(32, 8, 128, 8_030_261_248, 525_336_576)
    kept = kept_per_head(SpreadCateKV.at(0.4, ModelShape(32, 32, 8, 128)), 40_960)
    assert model.decode_bound(40_960, kept, batch=24) > model.decode_bound(40_960, kept)
