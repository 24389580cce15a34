"""What fits a device: the published memory figures, and what follows from the same arithmetic."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from catekv import HeadMask, methods
from catekv.errors import UserError
from catekv.methods.base import Method
from catekv.models import presets
from catekv.prefill import devices
from catekv.prefill.capacity import RESERVE_BATCH, RESERVE_SINGLE, Workload
from catekv.prefill.devices import DEVICES, GIB, find_device, read_bytes
from catekv.prefill.sizes import FUSED_GATE, GATED, ModelSizes, kept_table, sizes_of_config

FULL = methods.create("full")


@functools.cache
def sizes(name: str) -> ModelSizes:
    return sizes_of_config(presets.preset_config(name))


def catekv(name: str, ones: int, retention: float) -> Method:
    """CateKV with a mask of ``ones`` adaptive heads, wherever they are."""
    shape = sizes(name).shape
    adaptive = torch.zeros(shape.layers * shape.kv_heads, dtype=torch.bool)
    adaptive[:ones] = True
    mask = HeadMask(adaptive.view(shape.layers, shape.kv_heads))
    return methods.create("catekv", head_mask=mask, retention=retention)


# Memory of a single sample on one A100 (the paper's efficiency table), with the numbers of adaptive
# heads of its published masks and the slots its implementation reserves for generated tokens
PUBLISHED = [
    ("llama3-8b-1m", 512_000, None, 1.0, 77.72),
    ("llama3-8b-1m", 512_000, 103, 1.0, 41.02),
    ("llama3-8b-1m", 512_000, 77, 0.7, 28.59),
    ("phi3-mini-128k", 184_320, None, 1.0, 75.11),
    ("phi3-mini-128k", 184_320, 410, 1.0, 35.58),
    ("phi3-mini-128k", 184_320, 308, 1.0, 29.02),
    ("yi-9b-200k", 665_600, None, 1.0, 77.65),
    ("yi-9b-200k", 665_600, 77, 1.0, 41.62),
    ("yi-9b-200k", 665_600, 58, 0.8, 31.58),
]


@pytest.mark.parametrize(("name", "tokens", "ones", "retention", "published"), PUBLISHED)
def test_the_published_memory_figures(
    name: str, tokens: int, ones: int | None, retention: float, published: float
) -> None:
    method = FULL if ones is None else catekv(name, ones, retention)
    work = Workload(sizes(name), method, new_tokens=1024 if ones is None else 2048)
    assert work.resident_bytes(tokens) / GIB == pytest.approx(published, rel=0.02)


def decoding(method: Method, new_tokens: int = 0) -> Workload:
    return Workload(sizes("llama3-8b-1m"), method, new_tokens=new_tokens, prefilled=False)


def test_longest_single_contexts() -> None:
    """The derived lengths of the specification: weights and cache with one GiB left."""
    # 102.4 of 256 heads there
    adaptive = catekv("llama3-8b-1m", 102, 1.0)
    for device, full, ours in (("a100-80g", 518e3, 1.29e6), ("h200-141g", 1.01e6, 2.53e6)):
        memory = DEVICES[device].memory_bytes
        assert decoding(FULL).longest_context(memory) == pytest.approx(full, rel=0.01)
        assert decoding(adaptive).longest_context(memory) == pytest.approx(ours, rel=0.01)


def test_largest_batches_of_40k_samples() -> None:
    memory = DEVICES["h200-141g"].memory_bytes
    ours = [catekv("llama3-8b-1m", 102, 1.0), catekv("llama3-8b-1m", 77, 0.7)]
    found = [decoding(m, 256).largest_batch(40_960, memory) for m in (FULL, *ours)]
    assert found == [24, 56, 97]
    memory = DEVICES["a100-80g"].memory_bytes
    assert decoding(FULL, 256).largest_batch(40_960, memory) == 12


SNAPKV = methods.create("snapkv", budget=4096)


@pytest.mark.parametrize(("method", "prefilled"), [(FULL, True), (FULL, False), (SNAPKV, True)])
def test_the_longest_context_fits_and_one_token_more_does_not(
    method: Method, prefilled: bool
) -> None:
    work = Workload(sizes("qwen2.5-7b"), method, new_tokens=64, prefilled=prefilled)
    memory = 40 * GIB
    tokens = work.longest_context(memory)
    assert tokens is not None
    assert work.fits(tokens, 1, memory)
    assert not work.fits(tokens + 1, 1, memory)
    assert work.needed_bytes(tokens) <= memory - RESERVE_SINGLE < work.needed_bytes(tokens + 1)
    batch = work.largest_batch(8192, memory)
    assert work.needed_bytes(8192, batch) <= memory - RESERVE_BATCH
    assert work.needed_bytes(8192, batch + 1) > memory - RESERVE_BATCH


def test_a_fixed_budget_has_no_longest_context_but_for_its_prefill() -> None:
    work = decoding(SNAPKV)
    assert work.longest_context(40 * GIB) is None
    assert dataclasses.replace(work, prefilled=True).longest_context(40 * GIB) is not None


def test_nothing_fits_beside_weights_that_do_not() -> None:
    work = Workload(sizes("yi-34b-200k"), FULL)
    assert work.longest_context(40 * GIB) == 0
    assert work.largest_batch(1, 40 * GIB) == 0


def test_a_context_prefilled_here_is_shorter_than_one_loaded() -> None:
    work = Workload(sizes("llama3-8b-1m"), catekv("llama3-8b-1m", 77, 0.7))
    loaded = dataclasses.replace(work, prefilled=False)
    memory = DEVICES["a100-80g"].memory_bytes
    here, elsewhere = work.longest_context(memory), loaded.longest_context(memory)
    assert here is not None
    assert elsewhere is not None
    assert here < elsewhere


def test_a_real_mask_counts_its_own_heads() -> None:
    method, shape = catekv("llama3-8b-1m", 103, 1.0), sizes("llama3-8b-1m").shape
    tokens = 131_072
    table = kept_table(method, tokens, shape)
    assert table is not None
    assert int((table == tokens).sum()) == 103
    work = Workload(sizes("llama3-8b-1m"), method)
    assert work.cache_bytes(tokens) == (103 * tokens + 153 * 2080) * 2 * 128 * 2
    assert work.cache_bytes(tokens, 3) == 3 * work.cache_bytes(tokens)


def test_a_method_that_decides_by_content_promises_nothing() -> None:
    undecided = type("Undecided", (Method,), {"name": "undecided"})()
    work = Workload(sizes("llama3-8b-1m"), undecided)
    assert kept_table(undecided, 9999, work.sizes.shape) is None
    assert work.cache_bytes(9999) == Workload(work.sizes, FULL).cache_bytes(9999)
    assert not work.peak(9999).complete
    assert Workload(work.sizes, FULL).peak(9999).complete


def test_sizes_are_those_of_the_architecture() -> None:
    llama, phi = sizes("llama3-8b-1m"), sizes("phi3-mini-128k")
    assert (llama.parameters, llama.embedding_parameters) == (8_030_261_248, 525_336_576)
    assert llama.kv_bytes_per_token == 131_072
    assert (llama.feed_forward, phi.feed_forward) == (GATED, FUSED_GATE)
    assert (llama.fused_attention, phi.fused_attention) == (False, True)
    # a window as long as the context window hides nothing: such layers are compressed
    assert set(phi.windows) == {None}
    assert llama.weight_bytes == pytest.approx(14.96 * GIB, rel=1e-3)


def test_layers_with_a_window_hold_no_more_than_it() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "gemma3_text",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=100,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=8192,
    )
    small = sizes_of_config(config)
    assert small.windows == (512, None, 512)
    per_token = 2 * 2 * 16 * 2
    assert small.full_layer_bytes(4096) == [512 * per_token, 4096 * per_token, 512 * per_token]
    kept = small.kept_layer_bytes(methods.create("streaming_llm", budget=100), 4096)
    assert kept == [512 * per_token, 100 * per_token, 512 * per_token]


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * GIB), ("80", 80 * GIB), ("24 GB", 24 * 10**9), ("1.5tib", 1536 * GIB)],
)
def test_sizes_of_memory_as_people_write_them(text: str, size: int) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-3GiB", "80 apples", "0", "nan", "inf"])
def test_other_words_are_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="as in 80GiB"):
        read_bytes(text)


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("h200-141g").bandwidth == 4.8e12
    with pytest.raises(UserError, match=r"use auto, .*a100-80g"):
        find_device("abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_meminfo", lambda name: 3 * GIB)
    here = find_device("auto")
    assert (here.kind, here.memory_bytes) == ("cpu", 3 * GIB)
    monkeypatch.setattr(devices, "_meminfo", lambda name: None)
    with pytest.raises(UserError, match="--device-memory"):
        find_device("auto")


@pytest.mark.parametrize(
    ("name", "gib", "bandwidth"),
    [
        ("NVIDIA H200", 139.8, 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 79.3, 2.039e12),
        ("NVIDIA A100-SXM4-40GB", 39.4, 1.555e12),
        ("NVIDIA H100 PCIe", 79.1, None),
        ("NVIDIA T4", 14.6, None),
    ],
)
def test_bandwidth_of_the_device_here(name: str, gib: float, bandwidth: float | None) -> None:
    assert devices._bandwidth(name, int(gib * GIB)) == bandwidth
