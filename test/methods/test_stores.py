"""Where and how what a method kept is stored: the option ``store``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import torch
from decode_cases import (
    DIM,
    HEADS,
    compressed,
    random_layer,
    sequence,
    step_output,
    step_queries,
    store_output,
)
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.kernels import Workspace
from catekv.kernels.codes import FORMS, row_bytes
from catekv.kernels.packing import pack_merged
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods import Merged
from catekv.methods.stores import STORES, stored

MOVED = [name for name in STORES if name != "device"]
SNAPKV = {"budget": 10, "window": 4, "kernel": 3}


def snapkv(store: str) -> methods.Method:
    return methods.create("snapkv", store=store, **SNAPKV)


def windowed(store: str) -> methods.Method:
    """Heads of different lengths, some of which have groups of four-bit codes."""
    return methods.create("snapkv", store=store, **{**SNAPKV, "budget": (120, 30)})


def merged_prefix():
    generator = torch.Generator().manual_seed(0)

    def entries(count: int) -> Merged:
        keys, values = torch.randn(2, count, DIM, generator=generator)
        return Merged(keys, values, torch.rand(count, generator=generator))

    return pack_merged([[entries(5), entries(9)], [entries(0), entries(2)]])


def test_the_device_needs_no_store() -> None:
    assert compressed(snapkv("device"), random_layer(1, 50))[1] is None


def test_offloaded_equals_device_exactly() -> None:
    prefix, store = compressed(snapkv("offload"), random_layer(2, 50))
    for queries in (step_queries(2), step_queries(2, tokens=3)):
        assert torch.equal(store_output(store, queries), step_output(prefix, queries))


def read_entries(store, queries: Tensor) -> RaggedPrefix:
    """What a step reads, in the model's type."""
    seen, blocks = store.read(queries, 0.3)
    assert blocks is None
    return seen if isinstance(seen, RaggedPrefix) else seen.dequantised()


@pytest.mark.parametrize(("form", "most"), [("int8", 0.03), ("fp8", 0.2), ("int4", 0.4)])
def test_attention_over_quantised_entries_is_that_over_the_dequantised_ones(
    form: str, most: float
) -> None:
    prefix, store = compressed(windowed(form), random_layer(2, 150))
    queries = step_queries(2)
    seen = read_entries(store, queries)
    torch.testing.assert_close(store_output(store, queries), step_output(seen, queries))
    exact = step_output(prefix, queries)
    difference = (store_output(store, queries) - exact).abs().max()
    assert 0 < difference < most


@pytest.mark.parametrize("name", MOVED)
def test_biases_of_merged_entries_stay(name: str) -> None:
    prefix = merged_prefix()
    seen = read_entries(stored(name, prefix), step_queries(2))
    assert torch.equal(seen.bias, prefix.bias)
    assert seen.host_rows == prefix.host_rows


@pytest.mark.parametrize("name", MOVED)
def test_stored_bytes_are_those_of_the_form(name: str) -> None:
    prefix, store = compressed(windowed(name), random_layer(2, 500))
    assert torch.equal(store.lengths(), prefix.lengths.long())
    held = {tensor.data_ptr() for tensor in store.tensors()}
    if name == "offload":
        large = sum(t.nbytes for t in store.tensors() if len(t) == prefix.slots)
        assert large == prefix.slots * 2 * DIM * 4
        return  # on the CPU the host is where they are already
    found = sum(tensor.nbytes for tensor in store.quantised.named_tensors().values())
    assert found == sum(row_bytes(name, length, (DIM, DIM), 4) for _, length in prefix.host_rows)
    assert found < prefix.slots * 2 * DIM * 4
    assert prefix.keys.data_ptr() not in held


@pytest.mark.parametrize("name", MOVED)
def test_a_padded_batch_equals_its_single_prompts(name: str) -> None:
    observed = random_layer(2, 190, window=4)
    valid = torch.ones(2, 190, dtype=torch.bool)
    valid[1, :29] = False
    queries = step_queries(2)
    together = store_output(compressed(windowed(name), observed, valid)[1], queries)
    for b, start in enumerate((0, 29)):
        alone = compressed(windowed(name), sequence(observed, b, start))[1]
        torch.testing.assert_close(together[b : b + 1], store_output(alone, queries[b : b + 1]))


@pytest.mark.parametrize("name", MOVED)
def test_forks_and_rearranged_rows_share_what_is_stored(name: str) -> None:
    _, store = compressed(windowed(name), random_layer(3, 160))
    queries = step_queries(3)
    expected = store_output(store, queries)
    order = [1, 1, 0]
    moved = store.select_rows(order)
    torch.testing.assert_close(store_output(moved, queries[order]), expected[order])
    fork = copy.deepcopy(store)
    assert torch.equal(store_output(fork, queries), expected)
    shared = {t.data_ptr() for t in store.tensors()[:2]}
    assert {t.data_ptr() for t in fork.tensors()[:2]} == shared
    assert {t.data_ptr() for t in moved.tensors()[:2]} == shared


@pytest.mark.parametrize("form", FORMS)
def test_steps_read_one_prefix(form: str) -> None:
    """What kernels plan for a prefix, and recorded steps, stay valid."""
    _, store = compressed(snapkv(form), random_layer(1, 60, 0))
    first = store.read(step_queries(1), 0.3, Workspace())[0]
    assert store.read(step_queries(1, seed=2), 0.3, Workspace())[0] is first


@pytest.mark.parametrize(
    "name",
    [
        "quest",
        "shadowkv",
        "rocketkv",
        "h2o",
        "keepkv",
        "cam",
        "r_kv",
        "decoding",
        "pyramidinfer_kv",
    ],
)
def test_methods_with_a_store_of_their_own_refuse_another(name: str) -> None:
    """Before a prompt is read, whatever its length; where they do not go on, any store serves."""
    with pytest.raises(UserError, match=f"'{name}' stores the context its own way"):
        methods.create(name, store="int8")
    if "decode" in {item.name for item in dataclasses.fields(methods.method_class(name))}:
        assert methods.create(name, store="int8", decode=False).store == "int8"


def test_a_method_that_did_not_say_so_is_refused_with_its_first_layer() -> None:
    class Forgetful(type(methods.create("quest"))):  # type: ignore[misc]
        own_store = False

    method = Forgetful(budget=16, page=4, store="int8")
    with pytest.raises(UserError, match="stores the context its own way"):
        compressed(method, random_layer(1, 90))


def test_unknown_stores_are_refused() -> None:
    with pytest.raises(
        UserError, match="unknown store 'disk'; use device, offload, int8, fp8, int4"
    ):
        methods.create("snapkv", store="disk")


def test_the_option_is_recorded_and_read_back() -> None:
    assert "store" not in snapkv("device").to_dict()
    assert methods.from_dict(snapkv("fp8").to_dict()) == snapkv("fp8")
    assert (
        methods.create("snapkv", budget=3, store="int8")
        .budget_table(90, methods.ModelShape(2, 4, HEADS, DIM))
        .tolist()
        == [[35] * HEADS] * 2
    )


class FakeStream:
    """Stands where a CUDA stream would; what is enqueued runs at once."""

    def wait_stream(self, other: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record(self, stream: object = None) -> None: ...


@pytest.fixture
def imitated_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping of copies ahead, on the CPU."""
    stream = FakeStream()
    monkeypatch.setattr("catekv.methods.stores.offload.copy_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", FakeStream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, given: None)


@pytest.mark.usefixtures("imitated_cuda")
def test_layers_are_copied_ahead_into_two_buffers_in_turn(monkeypatch) -> None:
    from catekv.methods.stores.offload import OffloadedPrefix, _Prefetch

    layers = [compressed(snapkv("offload"), random_layer(1, 40 + 9 * i, i))[1] for i in range(5)]
    workspace, ahead = Workspace(), _Prefetch()
    filled: list[OffloadedPrefix] = []
    fill = _Prefetch._fill
    monkeypatch.setattr(
        _Prefetch,
        "_fill",
        lambda self, store, *more: (filled.append(store), fill(self, store, *more)),
    )
    for step in range(3):
        for number, store in enumerate(layers):
            keys, values = ahead.fetch(store, workspace)
            assert torch.equal(keys, store.keys)
            assert torch.equal(values, store.values)
            if step:  # the next layer is on its way before this one is used
                assert filled[-1] is layers[(number + 1) % 5]
    # after the first step every layer is copied once a step
    assert len(filled) == 3 * 5 + 1
    largest = max(store.keys.numel() for store in layers)
    assert sum(tensor.numel() for tensor in workspace.tensors()) <= 4 * 2 * largest


@pytest.mark.usefixtures("imitated_cuda")
def test_a_layer_out_of_order_is_copied_when_it_is_read() -> None:
    from catekv.methods.stores.offload import _Prefetch

    layers = [compressed(snapkv("offload"), random_layer(1, 60, i))[1] for i in range(3)]
    workspace, ahead = Workspace(), _Prefetch()
    for number in (0, 1, 2, 0, 2, 2, 1, 0):
        keys, values = ahead.fetch(layers[number], workspace)
        assert torch.equal(keys, layers[number].keys)
        assert torch.equal(values, layers[number].values)
