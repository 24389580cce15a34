"""Measuring decode steps: random caches of the right lengths, fair base lines, honest rows."""

from __future__ import annotations

import contextlib
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import any_model
from logit_models import logit_model
from tiny_models import BASE, FAMILIES
from torch.nn.attention.flex_attention import flex_attention

from catekv import CateKVModel, HeadMask, methods
from catekv.decode.fused import FusedStep, fused_step
from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import (
    breakdown,
    clock,
    dense,
    measure,
    memory,
    render,
    shapes,
    throughput,
)
from catekv.evaluation.efficiency.arguments import BASELINES
from catekv.evaluation.efficiency.fill import fill_random_, random_cache
from catekv.evaluation.efficiency.measurement import ABSENT, FAILED, MEASURED, TOO_LARGE
from catekv.evaluation.efficiency.variants import (
    DYNAMIC,
    KERNEL,
    RaggedStepper,
    Setting,
    variants,
)
from catekv.methods.base import Method

TOKENS = 300
EDGES = {"init_tokens": 8, "recent_tokens": 16, "guard_tokens": 8, "window": 16, "budget": 64}


def make_model(family: str = "llama") -> CateKVModel:
    from transformers import AutoConfig

    kind, values = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**BASE, **values})
    return CateKVModel.from_config(config, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def model() -> CateKVModel:
    return make_model()


def catekv_options(model: CateKVModel, **changes: Any) -> dict[str, Any]:
    mask = HeadMask.random(model.shape, 0.4)
    return {"head_mask": mask, "ratio": 0.4, **EDGES, **changes}


def catekv_spec(model: CateKVModel, **changes: Any) -> MethodSpec:
    return MethodSpec("catekv", "catekv", catekv_options(model, **changes))


def every_method(model: CateKVModel) -> dict[str, Method]:
    return {
        "full": methods.create("full"),
        "catekv": methods.create("catekv", **catekv_options(model)),
        "catekv, retention": methods.create("catekv", **catekv_options(model, retention=0.7)),
        "catekv, short": methods.create("catekv", **catekv_options(model, budget=TOKENS)),
        "snapkv": methods.create("snapkv", budget=50, window=16),
        "streaming": methods.create("streaming_llm", budget=70),
    }


# --- random fill ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_random_caches_have_the_lengths_and_layout_of_a_prefill(
    model: CateKVModel, batch: int
) -> None:
    ids = torch.randint(0, 97, (batch, TOKENS), generator=torch.Generator().manual_seed(1))
    for name, method in every_method(model).items():
        real = model.prefill(ids, method=method).cache
        made = random_cache(model, method, TOKENS, batch)
        assert made.get_seq_length() == real.get_seq_length() == TOKENS
        for ours, theirs in zip(made.ragged_layers, real.ragged_layers, strict=True):
            assert torch.equal(ours.lengths(), theirs.lengths()), name
            assert ours.prefix is not None
            assert theirs.prefix is not None
            assert ours.prefix.host_rows == theirs.prefix.host_rows, name
        assert made.stored_bytes() == real.stored_bytes(), name


def test_a_random_cache_decodes_at_the_positions_of_the_context(model: CateKVModel) -> None:
    setting = Setting(model, TOKENS, 2, steps=4)
    stepper = RaggedStepper(setting, random_cache(model, methods.create("full"), TOKENS, 2))
    for _ in range(3):
        stepper.step()
    assert stepper.cache.get_seq_length() == TOKENS + 3
    assert stepper.tokens.shape == (2, 1)


def test_random_entries_reach_the_last_place_and_differ() -> None:
    tensor = fill_random_(torch.zeros(5000, 1024))
    assert tensor.std().item() == pytest.approx(1.0, abs=0.01)
    assert tensor[-1].unique().numel() > 1000
    assert not torch.equal(fill_random_(torch.zeros(64), seed=1), fill_random_(torch.zeros(64)))


def test_what_cannot_be_filled_says_what_to_do() -> None:
    windowed = make_model("gemma3")
    with pytest.raises(UserError, match="--fill prefill"):
        random_cache(windowed, methods.create("full"), 64)


def test_methods_that_decide_by_content_need_a_prefill(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = methods.create("full")
    monkeypatch.setattr(type(method), "budget_table", Method.budget_table)
    with pytest.raises(UserError, match=r"decides its budgets.*--fill prefill"):
        random_cache(model, method, 64)


# --- base lines ----------------------------------------------------------------------------------


def logits_of(model: CateKVModel, cache: Any, token: int) -> torch.Tensor:
    with torch.no_grad():
        return model.model(
            torch.tensor([[token]]), past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, model: CateKVModel) -> list[str]:
    """Stand-ins for flash-attn and FlashInfer that compute with torch and note their use.

    A model has been made before: then transformers has looked for the real ones.
    """
    used: list[str] = []

    def attend(queries: Any, keys: Any, values: Any, scale: float) -> torch.Tensor:
        """Queries [batch, heads, 1, dim]; keys, values [batch, tokens, kv_heads, dim]."""
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        return F.scaled_dot_product_attention(queries, keys, values, scale=scale, enable_gqa=True)

    def flash(q: Any, k: Any, v: Any, *, cache_seqlens: Any, softmax_scale: float, causal: bool):  # type: ignore[no-untyped-def]
        used.append("flash")
        tokens = int(cache_seqlens[0])
        assert cache_seqlens.dtype == torch.int32
        assert causal
        out = attend(q.transpose(1, 2), k[:, :tokens], v[:, :tokens], softmax_scale)
        return out.transpose(1, 2)

    def single(q: Any, k: Any, v: Any, *, kv_layout: str, use_tensor_cores: bool, sm_scale: float):  # type: ignore[no-untyped-def]
        used.append("single")
        assert kv_layout == "NHD"
        return attend(q[None, :, None], k[None], v[None], sm_scale)[0, :, 0]

    class Pages:
        def __init__(self, space: torch.Tensor, layout: str, use_tensor_cores: bool):
            assert space.dtype == torch.uint8
            assert layout == "NHD"

        def plan(self, indptr: Any, indices: Any, last: Any, *heads: int, **options: Any) -> None:
            self.indptr, self.indices, self.last = indptr, indices, last
            self.scale = options["sm_scale"]

        def run(self, q: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            used.append("pages")
            rows = []
            for row in range(len(q)):
                own = self.indices[self.indptr[row] : self.indptr[row + 1]]
                keys, values = (tensor[own].flatten(0, 1) for tensor in pages)
                used_tokens = (len(own) - 1) * pages[0].shape[1] + int(self.last[row])
                keys, values = keys[:used_tokens][None], values[:used_tokens][None]
                rows.append(attend(q[row][None, :, None], keys, values, self.scale)[0, :, 0])
            return torch.stack(rows)

    # compiling takes a compiler and minutes; the definition is the same
    monkeypatch.setattr(dense, "_compiled_flex", lambda: flex_attention)
    flash_attn, flashinfer = types.ModuleType("flash_attn"), types.ModuleType("flashinfer")
    flash_attn.flash_attn_with_kvcache = flash  # type: ignore[attr-defined]
    flashinfer.single_decode_with_kv_cache = single  # type: ignore[attr-defined]
    flashinfer.BatchDecodeWithPagedKVCacheWrapper = Pages  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn)
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer)
    return used


# compiling it for every case would take minutes and compute the same
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3-long"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", sorted(dense.LIBRARIES))
def test_every_library_computes_full_attention(
    libraries: list[str], name: str, batch: int, family: str
) -> None:
    from transformers.cache_utils import DynamicCache

    model = make_model(family)
    cache = dense.dense_cache(model, dense.LIBRARIES[name], 37, batch)
    stock = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, dense.FixedLayer)
        reader = layer.reader
        pair = [tensor[:, :, :37] for tensor in (reader.keys, reader.values)]
        if not reader.heads_first:
            pair = [tensor[:, :37].transpose(1, 2) for tensor in (reader.keys, reader.values)]
        stock.update(pair[0].clone(), pair[1].clone(), index)
    tokens = torch.full((batch, 1), 5)
    step = fused_step(model.model)
    assert isinstance(step, FusedStep)
    with torch.no_grad():
        with dense.measured_attention(model):
            positions = torch.full((batch, 1), 37)
            ours = model.model(tokens, past_key_values=cache, position_ids=positions).logits
            fused = step(tokens, positions, cache)
        theirs = model.model(tokens, past_key_values=stock).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(fused, theirs[:, -1], atol=2e-5, rtol=1e-4)
    expected = {"flash": "flash", "flashinfer": "single" if batch == 1 else "pages"}
    assert set(libraries) == {expected[name]} if name in expected else not libraries


@pytest.mark.parametrize("reader", [dense.Sdpa, dense.FlashAttention])
def test_one_launch_writes_what_assignments_write(
    libraries: list[str], reader: type[dense.Reader]
) -> None:
    both = [reader(2, 3, 37, 8, torch.float32, torch.device("cpu"), 5) for _ in range(2)]
    keys, values = torch.randn(2, 2, 3, 1, 8)
    both[0].write(keys, values)
    both[1]._append(keys, values)
    assert torch.equal(both[0].keys, both[1].keys)
    assert torch.equal(both[0].values, both[1].values)


def test_the_models_own_attention_comes_back(model: CateKVModel) -> None:
    before = model.config._attn_implementation
    inside = []
    with pytest.raises(ZeroDivisionError), dense.measured_attention(model):
        raise ZeroDivisionError(inside.append(model.config._attn_implementation))
    assert inside != [before]
    assert model.config._attn_implementation == before


def test_libraries_that_are_not_installed_are_named(model: CateKVModel) -> None:
    found = {variant.label: variant.absent for variant in variants(model, [])}
    assert list(found) == [
        KERNEL, "full, torch SDPA", "full, torch FlexAttention", "full, flash-attn",
        "full, FlashInfer", DYNAMIC,
    ]  # fmt: skip
    assert found["full, flash-attn"] == "flash_attn is not installed"
    assert found["full, torch FlexAttention"] == "runs on CUDA only"
    assert found["full, torch SDPA"] == ""
    with pytest.raises(UserError, match="unknown baseline 'quick'; use kernel, sdpa"):
        variants(model, [], ["quick"])


# --- measuring -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
def test_libraries_without_a_models_logits_are_left_out(name: str, what: str) -> None:
    model = CateKVModel(logit_model(name, sliding=False), None)
    rows = measure.measure(
        model, [], 48, new_tokens=1, repeats=1, fill="prefill",
        baselines=["kernel", "sdpa", "dynamic"],
    )  # fmt: skip
    assert [row.status for row in rows] == [MEASURED, ABSENT, MEASURED]
    assert what in rows[1].note


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("family", ["jamba", "gemma3", "mistral-window"])
def test_models_with_states_and_windows_are_measured(family: str) -> None:
    model = CateKVModel(any_model(family), "full")
    rows = measure.measure(
        model, [], 60, new_tokens=2, repeats=1, fill="prefill",
        baselines=("kernel", "sdpa", "dynamic"),
    )  # fmt: skip
    found = {row.variant: row for row in rows}
    assert found["full, torch SDPA"].status == ABSENT
    assert "reads whole contexts only, not layer" in found["full, torch SDPA"].note
    assert found[KERNEL].status == found[DYNAMIC].status == MEASURED
    # the same states and entries, and where the rows of the one begin
    assert found[KERNEL].stored_bytes == pytest.approx(found[DYNAMIC].stored_bytes, rel=0.01)
    assert found[KERNEL].kept_tokens == found[DYNAMIC].kept_tokens
    with pytest.raises(UserError, match=r"cannot be filled at random.*--fill prefill"):
        measure.measure(model, [], 60, new_tokens=2, baselines=("dynamic",))


@pytest.mark.parametrize("fill", ["random", "prefill"])
def test_rows_count_the_same_steps_and_their_own_bytes(model: CateKVModel, fill: str) -> None:
    rows = measure.measure(
        model, [catekv_spec(model)], TOKENS, new_tokens=3, repeats=2, fill=fill,
        batch_sizes=(1, 2),
    )  # fmt: skip
    assert [row.batch for row in rows] == [1] * 7 + [2] * 7
    sizes = memory.memory_model(model)
    for row in rows:
        if row.status == ABSENT:
            assert row.variant in (
                "full, torch FlexAttention", "full, flash-attn", "full, FlashInfer"
            )  # fmt: skip
            continue
        assert row.status == MEASURED, row.note
        assert len(row.step_seconds) == 6
        assert len(row.wall_seconds) == 2
        assert row.full_bytes == sizes.cache_bytes(TOKENS) * row.batch
        assert row.method == (row.variant == "catekv")
        assert (row.ideal > 1.0) == row.method
        assert row.step_bytes == sizes.step_bytes(row.kept_tokens, row.batch)
        assert not row.captured
        assert row.reason
        assert row.resident_bytes is None
        prefilled = fill == "prefill" and row.variant in (KERNEL, DYNAMIC, "catekv")
        assert (row.first_token_seconds is not None) == prefilled
        split = row.variant in (KERNEL, "catekv")
        assert (row.attention_seconds is not None) == split
        assert (row.rest_seconds is not None) == split


def test_methods_that_work_on_entries_while_decoding_are_not_filled_at_random(
    model: CateKVModel,
) -> None:
    for method in (
        methods.create("quest"),
        methods.create("streaming_llm", budget=40, rolling=True),
        methods.create("catekv", **catekv_options(model), read="quest"),
    ):
        with pytest.raises(UserError, match="while decoding, which random ones do not show"):
            random_cache(model, method, TOKENS)


def test_entries_in_fewer_bits_count_with_their_own_bytes(model: CateKVModel) -> None:
    plain = catekv_spec(model)
    coded = replace(plain, label="int4", options={**plain.options, "store": "int4"})
    rows = measure.measure(model, [plain, coded], TOKENS, new_tokens=2, baselines=("kernel",))
    full, ours, four = rows
    sizes = memory.memory_model(model)
    assert four.kept_tokens == ours.kept_tokens
    assert four.code_bytes is not None
    assert four.code_bytes < sizes.cache_bytes(ours.kept_tokens)
    assert four.step_bytes == sizes.step_bytes(0) + four.code_bytes
    assert four.ideal == full.step_bytes / four.step_bytes > ours.ideal
    assert four.attention_seconds


@pytest.mark.parametrize("mode", ["on", "auto", "off"])
def test_full_attention_gets_the_same_step_as_the_methods(mode: str) -> None:
    model = make_model()
    model.fused_step = mode
    rows = measure.measure(model, [catekv_spec(model)], TOKENS, new_tokens=1, repeats=1)
    measured = {row.variant: row.fused for row in rows if row.status == MEASURED}
    assert set(measured) == {KERNEL, "full, torch SDPA", DYNAMIC, "catekv"}
    # transformers as it is stays as it is
    assert not measured.pop(DYNAMIC)
    assert set(measured.values()) == {mode == "on"}


def test_both_fills_keep_the_same(model: CateKVModel) -> None:
    kept = [
        measure.measure(
            model, [catekv_spec(model)], TOKENS, new_tokens=1, repeats=1, fill=fill,
            baselines=(), breakdown=False,
        )[0]
        for fill in ("random", "prefill")
    ]  # fmt: skip
    assert kept[0].kept_tokens == kept[1].kept_tokens < TOKENS
    assert kept[0].stored_bytes == kept[1].stored_bytes


def test_what_does_not_fit_is_a_row_that_says_so(model: CateKVModel) -> None:
    sizes = memory.memory_model(model)
    limit = int(sizes.cache_bytes(TOKENS)) + memory.LEAST_RESERVE
    rows = measure.measure(
        model, [catekv_spec(model)], TOKENS, new_tokens=2, repeats=1, memory_limit=limit,
        baselines=("kernel", "dynamic"),
    )  # fmt: skip
    assert [row.status for row in rows] == [TOO_LARGE, TOO_LARGE, MEASURED]
    assert "GiB are usable" in rows[0].note
    assert rows[0].median_step is None


@pytest.mark.parametrize("fill", ["random", "prefill"])
@pytest.mark.parametrize("known", [True, False])
def test_a_batch_beyond_all_memory_is_rows_that_say_so(
    model: CateKVModel, fill: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        # allocating is then what finds it out
        monkeypatch.setattr(memory, "usable_bytes", lambda *_: None)
        monkeypatch.setattr("catekv.prefill.capacity.free_memory_bytes", lambda device: None)
    rows = measure.measure(
        model, [catekv_spec(model)], TOKENS, new_tokens=1, repeats=1, fill=fill,
        batch_sizes=(10**12,), baselines=("kernel", "dynamic"),
    )  # fmt: skip
    assert [row.status for row in rows] == [TOO_LARGE] * 3
    assert {row.note for row in rows} == {"out of memory"} or known


def test_layers_share_memory_where_a_cache_is_too_large(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_LEAST_DISTINCT", 1)
    sizes = memory.memory_model(model)
    layer = sizes.cache_bytes(TOKENS) / model.shape.layers
    rows = measure.measure(
        model, [catekv_spec(model)], TOKENS, new_tokens=2, repeats=1, share_layers=True,
        memory_limit=int(2.6 * layer) + memory.LEAST_RESERVE,
        baselines=("kernel", "sdpa", "dynamic"),
    )  # fmt: skip
    assert [row.status for row in rows] == [MEASURED, MEASURED, TOO_LARGE, MEASURED]
    assert [row.distinct_layers for row in rows] == [2, 2, None, None]
    for row in rows[:2]:
        assert 0.6 * row.full_bytes < row.stored_bytes < 0.75 * row.full_bytes
    assert "2 layers have memory of their own" in render.render(rows, 1e9, "title")
    monkeypatch.undo()
    # so little memory that it would stay in the device's own cache
    (row,) = measure.measure(
        model, [], TOKENS, new_tokens=1, repeats=1, share_layers=True, baselines=("sdpa",),
        memory_limit=int(2.6 * layer) + memory.LEAST_RESERVE,
    )  # fmt: skip
    assert row.status == TOO_LARGE


@pytest.mark.parametrize("spec", ["full", "catekv"])
def test_layers_that_share_memory_have_the_lengths_of_their_own(
    model: CateKVModel, spec: str
) -> None:
    method = every_method(model)[spec]
    own = random_cache(model, method, TOKENS, 2)
    shared = random_cache(model, method, TOKENS, 2, distinct=2)
    assert all(torch.equal(a, b) for a, b in zip(own.lengths(), shared.lengths(), strict=True))
    prefixes = [layer.prefix for layer in shared.ragged_layers]
    places = [prefix.keys.data_ptr() for prefix in prefixes if prefix is not None]
    assert places[0] == places[2] != places[1]


def test_memory_is_what_a_variant_adds_to_the_weights(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much other variants hold meanwhile."""
    held = iter([1000, 1700, 5000, 5900])
    monkeypatch.setattr(memory, "allocated_bytes", lambda device: next(held))
    rows = measure.measure(
        model, [], TOKENS, new_tokens=1, repeats=1, breakdown=False, baselines=("kernel", "sdpa")
    )
    weights = sum(parameter.nbytes for parameter in model.model.parameters())
    assert [row.resident_bytes for row in rows] == [weights + 700, weights + 900]


def test_the_copy_is_a_median_over_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setitem(clock._COPY_BYTES, "cpu", 4096)
    monkeypatch.setattr(clock, "step_times", lambda copy, count, device: ([1.0, 2.0, 9.0], 4.0))
    assert clock.copy_bandwidth(device) == 2 * 4096 / 2.0


def test_a_prefill_that_does_not_fit_is_a_row_too(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catekv.prefill.capacity.free_memory_bytes", lambda device: 0)
    rows = measure.measure(
        model, [], TOKENS, new_tokens=1, repeats=1, fill="prefill", baselines=("kernel", "sdpa"),
        breakdown=False,
    )  # fmt: skip
    assert [row.status for row in rows] == [TOO_LARGE, MEASURED]
    assert "a prefill of 300 tokens needs" in rows[0].note


def test_an_error_is_a_row_and_the_others_are_measured(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    monkeypatch.setattr(dense.Sdpa, "attend", broken)
    rows = measure.measure(
        model, [], TOKENS, new_tokens=1, repeats=1, baselines=("kernel", "sdpa"), breakdown=False
    )
    assert [row.status for row in rows] == [MEASURED, FAILED]
    assert rows[1].note == "RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length 0 must be at least 1"),
        ({"repeats": 0}, "repeats 0 must be at least 1"),
        ({"fill": "zeros"}, "unknown fill 'zeros'; use random or prefill"),
        ({"batch_sizes": (0,)}, "batch size 0 must be at least 1"),
        ({"length": 510}, "exceed the model's context window of 512"),
        ({"graph": "on", "baselines": ("kernel",)}, "cannot be recorded"),
    ],
)
def test_mistakes(model: CateKVModel, changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"length": 64, "new_tokens": 1, "repeats": 1, **changes}
    with pytest.raises(UserError, match=message):
        measure.measure(model, [], **given)


def test_a_step_without_attention_still_counts_its_tokens(model: CateKVModel) -> None:
    setting = Setting(model, TOKENS, 1, steps=16)
    stepper = RaggedStepper(setting, random_cache(model, methods.create("full"), TOKENS))
    before = stepper.cache.get_seq_length()
    assert breakdown.rest_seconds(setting, stepper) > 0
    assert breakdown.attention_seconds(setting, stepper) > 0
    assert stepper.cache.get_seq_length() == before
    assert model.config._attn_implementation == "catekv"


class Clock:
    """Stands for a device whose steps take a millisecond and a quarter each."""

    now = 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        Clock.now += 1.25
        self.time = Clock.now

    def elapsed_time(self, later: Clock) -> float:
        return later.time - self.time


def test_on_a_gpu_the_devices_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(clock, "synchronize", lambda device: None)
    steps: list[int] = []
    times, wall = clock.step_times(lambda: steps.append(1), 4, torch.device("cuda"))
    assert times == pytest.approx([0.00125] * 4)
    assert len(steps) == 4
    assert wall < 0.00125


# --- throughput ----------------------------------------------------------------------------------


def test_the_largest_batch_fits_and_one_more_does_not(model: CateKVModel) -> None:
    sizes = memory.memory_model(model)
    steps = measure.WARM_UP_STEPS + 2 + 1
    limit = memory.LEAST_RESERVE + 5 * int(sizes.cache_bytes(TOKENS + steps)) + 4096
    rows = throughput.throughput(
        model, [catekv_spec(model)], TOKENS, new_tokens=2, repeats=1, memory_limit=limit
    )
    assert [row.variant for row in rows] == [KERNEL, "catekv"]
    assert rows[0].batch == 5
    assert rows[1].batch > 5
    assert all(row.status == MEASURED and row.tokens_per_second for row in rows)


def test_a_batch_that_the_arithmetic_missed_shrinks(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    build = RaggedStepper.__init__

    def limited(self: RaggedStepper, setting: Setting, *rest: Any) -> None:
        sizes.append(setting.batch)
        if setting.batch > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        build(self, setting, *rest)

    monkeypatch.setattr(RaggedStepper, "__init__", limited)
    monkeypatch.setattr(throughput, "largest_batch", lambda *arguments: 5)
    (row,) = throughput.throughput(model, [], TOKENS, new_tokens=1, repeats=1)
    assert sizes == [5, 4, 3]
    assert (row.batch, row.status) == (3, MEASURED)


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama3-8b-1m", "llama3.1-8b", "phi3-mini-128k", "yi-9b-200k", "qwen2.5-7b"]
)
def test_scaled_shapes_keep_head_dim_and_group_and_run(name: str) -> None:
    from catekv.models import presets

    whole = presets.preset_config(name)
    model, note = shapes.random_model(name, 256, scale=0.01, device="cpu")
    shape = model.shape
    head_dim = getattr(whole, "head_dim", None) or whole.hidden_size // whole.num_attention_heads
    group = whole.num_attention_heads // whole.num_key_value_heads
    assert (shape.head_dim, shape.query_heads // shape.kv_heads) == (head_dim, group)
    assert (shape.layers, shape.kv_heads) == (5, 2)
    assert note == ""
    (row,) = measure.measure(
        model, [], 100, new_tokens=1, repeats=1, baselines=("kernel",), breakdown=False
    )
    assert row.status == MEASURED


def test_scale_one_is_the_model_itself() -> None:
    from catekv.models import presets

    config = presets.preset_config("llama3-8b-1m")
    scaled = shapes.scaled_config(config, 1.0)
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    assert [getattr(scaled, name) for name in names] == [getattr(config, name) for name in names]


def test_weights_and_cache_shrink_alike() -> None:
    from catekv.models import presets
    from catekv.prefill.sizes import sizes_of_config

    config = presets.preset_config("llama3-8b-1m")
    whole, part = sizes_of_config(config), sizes_of_config(shapes.scaled_config(config, 0.25))
    proportion = whole.step_bytes(0) / whole.cache_bytes(512000)
    scaled = part.step_bytes(0) / part.cache_bytes(128000)
    assert scaled == pytest.approx(proportion, rel=0.2)


def test_a_length_beyond_the_window_widens_it_and_says_so() -> None:
    from catekv.models import presets

    config, note = shapes.long_enough(presets.preset_config("phi3-mini-128k"), 200000)
    assert config.max_position_embeddings == 200000
    assert config.sliding_window is None
    assert "from 131072 to 200000 tokens" in note
    assert shapes.long_enough(config, 100)[1] == ""


def test_every_baseline_has_a_reader_or_a_builder() -> None:
    assert set(BASELINES) == {"kernel", "dynamic", *dense.LIBRARIES}
