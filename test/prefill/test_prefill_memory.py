"""A prefill holds what the memory model says, metered on live tensors, and nothing besides."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from scenarios import left_padding
from tiny_checkpoint import save_tiny_checkpoint
from tiny_models import VOCABULARY, KeepEverything, tiny_model
from torch import Tensor

from catekv import HeadMask, loading, methods
from catekv.cache import attention
from catekv.cache.cache import RaggedCache
from catekv.errors import UserError
from catekv.methods.base import Method, Observed, Selection
from catekv.model import CateKVModel
from catekv.models.shape import ModelShape
from catekv.prefill import capacity, layerwise
from catekv.prefill.peak import peak_prefill_bytes, prefill_peak
from catekv.prefill.sizes import ModelSizes, sizes_of_config, sizes_of_model

LAYERS = 2
#: Shapes with the proportions of real models, scaled down; long prompts for their width.
SHAPES: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 256, "intermediate_size": 896, "num_key_value_heads": 2},
    "qwen3": {"hidden_size": 160, "intermediate_size": 608, "num_key_value_heads": 2,
              "head_dim": 32},
    "phi3": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6,
             "num_key_value_heads": 6},
    "gemma": {"hidden_size": 192, "intermediate_size": 1024, "num_attention_heads": 4,
              "num_key_value_heads": 1, "head_dim": 64},
}  # fmt: skip


@functools.lru_cache(maxsize=2)
def long_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    values = {"num_hidden_layers": LAYERS, "max_position_embeddings": 1 << 17, **changes}
    return tiny_model(family, **{**SHAPES[family.partition("-")[0]], **values}).to(dtype)


@dataclass(frozen=True)
class KeepFirst(Method):
    """Keeps the first part of a prompt and looks at nothing."""

    name = "keep_first"

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.full((shape.layers, shape.kv_heads), tokens * 3 // 4)

    def select_observed(self, observed: Observed) -> Selection:
        keep = torch.zeros(observed.keys.shape[:3], dtype=torch.bool)
        keep[:, :, : observed.tokens * 3 // 4] = True
        return Selection(keep)


def method_for(name: str, sizes: ModelSizes) -> Method:
    name, _, store = name.partition("/")
    if name == "keep_first":
        return KeepFirst(store=store or "device")
    if name == "catekv":
        mask = HeadMask.random((sizes.layers, sizes.kv_heads), 0.4, 0)
        return methods.create(name, head_mask=mask, budget=512, retention=0.9)
    options = {"snapkv": {"budget": 256}, "kvzip": {"budget": 256, "chunk": 1000}}
    return methods.create(name, store=store or "device", **options.get(name, {}))


def metered(
    model: Any, method: Method, ids: Tensor, chunk_size: int | None, mask: Tensor | None = None
) -> int:
    """Peak of a prefill's live bytes, without the weights."""
    assert layerwise._why_not_layerwise(model, ids.shape[1]) is None
    cache = RaggedCache(model.config, method, ids.shape[1])
    with LiveBytes() as meter:
        layerwise.prefill(model, ids, cache, mask, chunk_size)
    assert cache.compressed
    return meter.peak


def prompt(batch: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def arithmetic(
    model: Any, method: Method, tokens: int, batch: int, chunk_size: int | None
) -> tuple[int, str]:
    sizes = sizes_of_model(model)
    peak = prefill_peak(sizes, method, tokens, batch, chunk_size, "cpu")
    return peak.total - sizes.weight_bytes, peak.moment


@pytest.fixture(autouse=True)
def _small_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    # in proportion to the shapes; at its real size the mask of a query block would outweigh them
    monkeypatch.setattr(attention, "MASK_BYTES", 512 * 1024)


def test_the_meter_counts_storages_while_they_live() -> None:
    before = torch.zeros(1000)
    with LiveBytes() as meter:
        one = before + 1
        two = one[10:20]
        assert meter.now == 4000
        del one
        three = torch.zeros(500)
        assert meter.now == 6000
        del two, three
        torch.zeros(1)
        assert meter.now == 4
    assert meter.peak == 6000
    assert [live.bytes for live in meter.at_peak] == [4000, 2000]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, "catekv") for family in SHAPES),
        ("llama", "full"),
        ("llama", "snapkv"),
        ("llama", "keep_first"),
    ],
)
def test_the_peak_is_that_of_the_arithmetic(family: str, name: str) -> None:
    model = long_model(family)
    method = method_for(name, sizes_of_model(model))
    expected, _ = arithmetic(model, method, 2048, 1, 128)
    assert metered(model, method, prompt(1, 2048), 128) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("name", "batch", "tokens", "chunk_size", "moment"),
    [
        ("full", 1, 2048, 512, "feed-forward part of a chunk"),
        ("full", 2, 1000, 32, "attention of a chunk"),
        ("catekv", 2, 1500, 128, "choice of what to keep"),
        ("catekv", 1, 2048, 1024, "feed-forward part of a chunk"),
        ("keep_first", 2, 2001, 48, "packing of what is kept"),
        ("snapkv", 1, 1500, None, "feed-forward part of a chunk"),
        ("full", 2, 700, None, "feed-forward part of a chunk"),
        ("kvzip", 1, 2048, 128, "repetition of the prompt"),
        ("full/int8", 2, 1500, 16, "packing of what is kept"),
        ("full/int4", 2, 1500, 16, "packing of what is kept"),
        ("keep_first/int4", 2, 2001, 48, "packing of what is kept"),
    ],
)
def test_lengths_batches_chunks_and_moments(
    name: str, batch: int, tokens: int, chunk_size: int | None, moment: str
) -> None:
    model = long_model("llama")
    method = method_for(name, sizes_of_model(model))
    expected, found = arithmetic(model, method, tokens, batch, chunk_size)
    assert found == moment
    actual = metered(model, method, prompt(batch, tokens), chunk_size)
    assert actual == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("family", "name"), [("llama", "catekv"), ("phi3", "full")])
def test_half_precision(family: str, name: str) -> None:
    """Norms and scores are computed in float32 whatever the model's type."""
    model = long_model(family, torch.bfloat16)
    method = method_for(name, sizes_of_model(model))
    expected, _ = arithmetic(model, method, 2048, 1, 128)
    assert metered(model, method, prompt(1, 2048), 128) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_padding_costs_nothing(family: str) -> None:
    """No mask of queries by keys, no repeated KV heads, no copies of sequences."""
    model = long_model(family)
    method = methods.create("snapkv", budget=512)
    ids = prompt(2, 1024)
    mask = left_padding(2, 1024)
    plain, padded = metered(model, method, ids, 128), metered(model, method, ids, 128, mask)
    assert padded <= 1.03 * plain


def test_a_window_that_hides_nothing_costs_nothing() -> None:
    method = methods.create("snapkv", budget=512)
    ids = prompt(1, 2048)
    peaks = [
        metered(long_model("phi3", sliding_window=window), method, ids, 128)
        for window in (None, 1 << 18)
    ]
    assert peaks[0] == peaks[1]


def test_the_stock_forward_needs_far_more() -> None:
    model = long_model("llama")
    method = methods.create("snapkv", budget=512)
    ids = prompt(1, 2048)
    assert 3 * metered(model, method, ids, 128) < metered(model, method, ids, None)


def test_terms_add_up_and_say_what_they_are() -> None:
    sizes = sizes_of_config(long_model("llama").config)
    method = method_for("catekv", sizes)
    peak = prefill_peak(sizes, method, 100_000, 2, 4096, "cuda")
    assert peak.total == int(sum(term.bytes for term in peak.terms))
    assert peak.total == peak_prefill_bytes(sizes, method, 100_000, 2, 4096, "cuda:1")
    assert peak.bytes_of("workspaces") > 0
    assert all(term.meaning and term.bytes >= 0 for term in peak.terms)
    assert peak.bytes_of("weights") == sizes.parameters * 2
    assert peak.bytes_of("hidden states") == 2 * 100_000 * 256 * 2
    assert peak.bytes_of("one dense layer") == 2 * 100_000 * sizes.kv_heads * 2 * 32 * 2
    assert peak.bytes_of("no such term") == 0


def test_methods_that_see_all_layers_leave_them_dense() -> None:
    sizes = sizes_of_config(long_model("llama").config)
    late = next(
        methods.create(name)
        for name in ("dynamickv", *methods.available())
        if name not in ("catekv", "duo_attention") and methods.create(name).needs.all_layers
    )
    full = sum(sizes.full_layer_bytes(50_000))
    peak = prefill_peak(sizes, late, 50_000, 1, 1024)
    assert peak.bytes_of("kept cache") + peak.bytes_of("one dense layer") == full


# --- refusal ----------------------------------------------------------------------------------


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(capacity, "free_memory_bytes", lambda device: free)


@pytest.fixture
def wrapped() -> CateKVModel:
    model = long_model("llama")
    return CateKVModel(model, methods.create("snapkv", budget=256))


def test_a_prefill_that_cannot_fit_is_refused(
    wrapped: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(1, 2048)
    sizes = sizes_of_model(wrapped.model)
    needed = peak_prefill_bytes(sizes, wrapped.method, 2048, 1, 256, "cpu") - sizes.weight_bytes
    with_free(monkeypatch, needed)
    assert wrapped.prefill(ids, 256).cache.compressed
    with_free(monkeypatch, needed - 1)
    with pytest.raises(UserError) as refusal:
        wrapped.prefill(ids, 256)
    text = str(refusal.value)
    assert "\n" not in text
    mebibytes = 2**20
    for part in (
        "a prefill of 2048 tokens needs",
        f"weights {sizes.weight_bytes / mebibytes:.2f}",
        "kept cache",
        "one dense layer",
        f"hidden states {2048 * 256 * 4 / mebibytes:.2f}",
        "temporaries",
        "at most 2047 tokens fit",
        "check_memory=False",
    ):
        assert part in text
    assert wrapped.prefill(ids, 256, check_memory=False).cache.compressed
    with_free(monkeypatch, None)
    assert wrapped.prefill(ids, 256).cache.compressed


def test_a_batch_learns_how_many_sequences_fit(
    wrapped: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of_model(wrapped.model)
    three = peak_prefill_bytes(sizes, wrapped.method, 1024, 3, 256, "cpu")
    with_free(monkeypatch, three - sizes.weight_bytes)
    with pytest.raises(UserError, match=r"4 sequences of 1024 tokens needs .* or 3 sequences"):
        wrapped.prefill(prompt(4, 1024), 256)


def test_padding_counts_as_nothing_kept(
    wrapped: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of_model(wrapped.model)
    tokens, mask = 600, torch.ones(2, 600, dtype=torch.long)
    mask[0, :580] = 0
    shorter = prefill_peak(sizes, wrapped.method, tokens, 2, 256, "cpu", [20, 600]).total
    assert shorter < peak_prefill_bytes(sizes, wrapped.method, tokens, 2, 256, "cpu")
    with_free(monkeypatch, shorter - sizes.weight_bytes)
    assert wrapped.prefill(prompt(2, tokens), 256, attention_mask=mask).cache.compressed


def test_what_cannot_be_known_is_not_refused(
    wrapped: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that decides by content is refused only if it would not fit keeping nothing."""
    ids, method = prompt(1, 2048), KeepEverything()
    sizes = sizes_of_model(wrapped.model)
    peak = prefill_peak(sizes, method, 2048, 1, 256, "cpu")
    assert not peak.complete
    least = peak.total - peak.bytes_of("kept cache") - sizes.weight_bytes
    with_free(monkeypatch, int(least))
    assert wrapped.prefill(ids, 256, method).cache.compressed
    with_free(monkeypatch, int(least) - 1)
    with pytest.raises(UserError, match="a prefill of 2048 tokens needs"):
        wrapped.prefill(ids, 256, method)


def test_observing_needs_all_layers_at_once(
    wrapped: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of_model(wrapped.model)
    compressed = peak_prefill_bytes(sizes, wrapped.method, 2048, 1, 256, "cpu")
    with_free(monkeypatch, compressed - sizes.weight_bytes)
    assert wrapped.prefill(prompt(1, 2048), 256).cache.compressed
    with pytest.raises(UserError, match="a prefill of 2048 tokens needs"):
        wrapped.observe(prompt(1, 2048), chunk_size=256)
    assert wrapped.observe(prompt(1, 2048), chunk_size=256, check_memory=False).tokens == 2048


def test_a_mask_of_another_model_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_tiny_checkpoint(tmp_path)

    def read(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(UserError, match="3"):
        CateKVModel.from_pretrained(folder, head_mask=HeadMask.random((3, 2), 0.5, 0))
    with pytest.raises(UserError, match="5"):
        CateKVModel.from_config(
            "llama3-8b-1m", "catekv", head_mask=HeadMask.random((32, 5), 0.5, 0), device="cpu"
        )


def test_configurations_that_say_more_heads_than_their_model_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the attention layers really are decides, not the numbers of the configuration."""
    config = long_model("llama").config
    method = methods.create("catekv", head_mask=HeadMask.random((LAYERS, 1), 0.5, 0))
    with pytest.raises(UserError, match="head mask"):
        loading.refuse_early(method, config)
    real = ModelShape(LAYERS, 8, 1, 32)
    monkeypatch.setattr(loading, "_shape_without_weights", lambda config: real)
    loading.refuse_early(method, config)
