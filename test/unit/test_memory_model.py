"""The analytic model against the reference numbers."""

from __future__ import annotations

import pytest

from catekv.memory_model import GB, GIB, MemoryModel, kept_tokens


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
        kept = kept_tokens(
            tokens,
            given["r"],
            given["eta"],
            given["budget"],
            given["init"],
            given["recent"],
            given["tail"],
        )
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


def test_short_prompts_are_kept_whole() -> None:
    assert kept_tokens(2000, 0.4) == 2000
    assert kept_tokens(2080, 0.4) == 2080
    assert kept_tokens(100_000, 0.4) < 0.5 * 100_000


def test_the_largest_batch_bound_exceeds_that_of_a_single_sequence() -> None:
    model = MemoryModel(32, 8, 128, 8_030_261_248, 525_336_576)
    kept = kept_tokens(40_960, 0.4)
    assert model.decode_bound(40_960, kept, batch=24) > model.decode_bound(40_960, kept)
