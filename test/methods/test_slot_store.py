"""What all stores that evict while decoding have in common."""

from __future__ import annotations

import copy

import pytest
import torch
from slot_rows import HEADS, SCALING, after_prefill, decode, random_tensors

from catekv import methods
from catekv.kernels.ragged import storage_bytes

METHODS = {
    "h2o": {"budget": 9},
    "cam": {"budget": 9, "sinks": 2, "expected": True},
    "cam/h2o": {"budget": 9, "rule": "h2o"},
    "keepkv": {"budget": 9, "window": 4, "threshold": 0.1},
}


def made(name: str, **more) -> methods.Method:
    return methods.create(name.split("/")[0], **{**METHODS[name], **more})


def prompt_and_rest(dtype: torch.dtype = torch.float32) -> tuple:
    tensors = [x.to(dtype) for x in random_tensors(2, 40)]
    return [x[:, :, :25] for x in tensors], [x[:, :, 25:] for x in tensors]


def steps(store, rest: list, size: int = 1) -> list[torch.Tensor]:
    return [
        decode(store, *(x[:, :, start : start + size] for x in rest))
        for start in range(0, rest[0].shape[2], size)
    ]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_half_precision_is_stored_as_it_came_and_computed_in_single(name: str) -> None:
    prompt, rest = prompt_and_rest(torch.bfloat16)
    _, store = after_prefill(made(name), *prompt)
    for output in steps(store, rest):
        assert bool(output.isfinite().all())
    prefix, _ = store.read(rest[0], SCALING)
    assert prefix.keys.dtype == prefix.values.dtype == torch.bfloat16
    assert prefix.bias.dtype == store.entries.scores.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_prefix_it_was_made_from_is_left_alone(name: str) -> None:
    prompt, rest = prompt_and_rest()
    prefix, store = after_prefill(made(name), *prompt)
    before = [tensor.clone() for tensor in prefix.tensors()]
    steps(store, rest)
    assert all(map(torch.equal, prefix.tensors(), before))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_memory_does_not_grow(name: str) -> None:
    prompt, rest = prompt_and_rest()
    _, store = after_prefill(made(name), *prompt)
    sizes = {storage_bytes(store.tensors()) for _ in steps(store, rest)}
    assert len(sizes) == 1
    assert store.lengths().tolist() == [[9] * HEADS] * 2
    assert store.read(rest[0], SCALING)[0].slots == 9 * HEADS * 2


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_store_made_in_inference_mode_works_on_outside_of_it(name: str) -> None:
    prompt, rest = prompt_and_rest()
    _, plain = after_prefill(made(name), *prompt)
    with torch.inference_mode():
        _, store = after_prefill(made(name), *(x.clone() for x in prompt))
        first = decode(store, *(x[:, :, :1].clone() for x in rest))
    later = steps(store, [x[:, :, 1:] for x in rest])
    expected = steps(plain, rest)
    for found, one in zip([first, *later], expected, strict=True):
        assert torch.equal(found, one)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_head_may_have_its_own_room(name: str) -> None:
    method = made(name, budgets=[[3, 11]])
    prompt, rest = prompt_and_rest()
    _, store = after_prefill(method, *prompt)
    steps(store, rest)
    edges = method.edges()
    assert store.lengths().tolist() == [[3 + edges, 11 + edges]] * 2


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_row_alone_decodes_as_it_does_among_others(name: str) -> None:
    prompt, rest = prompt_and_rest()
    _, store = after_prefill(made(name), *prompt)
    chosen = store.select_rows([1])
    together = steps(copy.deepcopy(store), rest, 5)
    alone = steps(chosen, [x[1:] for x in rest], 5)
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_growing_rows_lose_nothing(name: str) -> None:
    tensors = random_tensors(1, 330)
    _, store = after_prefill(made(name, budget=300), *(x[:, :, :20] for x in tensors))
    for start, stop in ((20, 21), (21, 150), (150, 300)):
        decode(store, *(x[:, :, start:stop] for x in tensors))
        assert store.lengths().tolist() == [[stop] * HEADS]
    prefix, _ = store.read(tensors[0], SCALING)
    order = store.entries.positions[0].sort().values
    assert order[order >= 0].tolist() == list(range(300))
    assert prefix.slots == 300 * HEADS
    decode(store, *(x[:, :, 300:] for x in tensors))
    assert store.lengths().tolist() == [[300] * HEADS]
