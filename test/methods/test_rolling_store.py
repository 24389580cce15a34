"""Sinks and recent tokens while decoding: which tokens a step reads, and where they seem to lie."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.kernels.packing import pack
from catekv.methods import Method, Observed
from catekv.methods.stores import rolling
from catekv.methods.stores.base import DecodeStore
from catekv.models.rotation import Rotation

DIM = 8
ROTATION = Rotation(100.0 ** -(torch.arange(0, DIM, 2) / DIM))


def numbered(batch: int, tokens: int, start: int = 0) -> Tensor:
    """Keys [batch, 2, tokens, 8] whose first number is the token's."""
    keys = torch.zeros(batch, 2, tokens, DIM)
    keys[..., 0] = torch.arange(start, start + tokens)
    return keys


def opened(method: Method, keys: Tensor, valid: Tensor | None = None, layer: int = 0) -> Any:
    queries = torch.zeros(keys.shape[0], 4, 0, DIM)
    observed = Observed(queries, keys, keys, 0.5, layer, 2, rotation=ROTATION)
    (selection,) = method.select_padded([observed], valid)
    assert selection.keep is not None
    return method.open_store(pack(keys, keys, selection.keep), observed, valid, selection)


def tokens_read(store: DecodeStore, row: int) -> list[int]:
    prefix, blocks = store.read(torch.zeros(1, 4, 1, DIM), 0.5)
    assert blocks is None
    keys, values, _ = prefix.row(*divmod(row, 2))
    assert torch.equal(keys, values)
    return sorted(int(number) for number in keys[:, 0])


def step(store: DecodeStore, tail: Tensor, added: int = 1, visible: Tensor | None = None) -> int:
    """One forward whose tokens are the tail's last ``added``; how many tail tokens it took."""
    queries = torch.zeros(tail.shape[0], 4, added, DIM)
    return store.absorb(queries, tail, tail, 0.5, visible)


@pytest.mark.parametrize("fold", [1, 3, 128])
def test_every_new_token_drives_out_the_oldest_recent_one(
    monkeypatch: pytest.MonkeyPatch, fold: int
) -> None:
    monkeypatch.setattr(rolling, "FOLD", fold)
    store = opened(
        methods.create("streaming_llm", rolling=True, budget=7, sinks=2), numbered(1, 20)
    )
    assert tokens_read(store, 0) == [0, 1, 15, 16, 17, 18, 19]
    start = 20
    for now in range(21, 40):
        taken = step(store, numbered(1, now - start, start))
        start += taken
        # what the next token reads: sinks and the five tokens before it, some of them in the tail
        tail = list(range(start, now))
        assert tokens_read(store, 1) + tail == [0, 1, *range(now - 5, now)]
        assert len(tail) < max(fold, 6)
    assert store.lengths().tolist() == [[7 - len(tail)] * 2]


def test_a_question_longer_than_the_window_leaves_its_end() -> None:
    store = opened(methods.create("sliding_window", rolling=True, budget=4), numbered(1, 20))
    assert step(store, numbered(1, 9, 20), added=9) == 9
    assert tokens_read(store, 0) == [25, 26, 27, 28]


def test_a_row_that_is_not_full_grows_first() -> None:
    store = opened(methods.create("streaming_llm", rolling=True, budget=6, sinks=4), numbered(1, 2))
    assert step(store, numbered(1, 1, 2)) == 0
    assert tokens_read(store, 0) == [0, 1]
    # the first tokens of a short prompt's continuation are sinks too
    assert step(store, numbered(1, 7, 2), added=4) == 7
    assert tokens_read(store, 0) == [0, 1, 2, 3, 7, 8]


def test_padding_is_neither_kept_nor_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "FOLD", 4)
    keys = torch.cat([numbered(1, 20), numbered(1, 20, -5)])
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[1, :5] = False
    store = opened(methods.create("streaming_llm", rolling=True, budget=6, sinks=2), keys, valid)
    assert tokens_read(store, 2) == [0, 1, 11, 12, 13, 14]
    tail = torch.cat([numbered(1, 4, 20), numbered(1, 4, 13)])  # two of padding, then 15 and 16
    visible = torch.tensor([[True] * 4, [False, False, True, True]])
    assert step(store, tail, 4, visible) == 4
    assert tokens_read(store, 0) == [0, 1, 20, 21, 22, 23]
    assert tokens_read(store, 2) == [0, 1, 13, 14, 15, 16]


def test_duo_rolls_streaming_heads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "FOLD", 3)
    gates = [[0.9, 0.1], [0.8, 0.7]]
    options = {"pattern": gates, "streaming_share": 0.25, "sinks": 1, "recent": 3, "rolling": True}
    method = methods.create("duo_attention", **options)
    store = opened(method, numbered(1, 10))
    start = 10
    for now in range(11, 20):
        start += step(store, numbered(1, now - start, start))
        tail = list(range(start, now))
        assert tokens_read(store, 0) + tail == list(range(now))
        assert tokens_read(store, 1) + tail == [0, *range(now - 3, now)]
    # a layer without streaming heads takes part, so that all tails stay equally long
    whole = opened(method, numbered(1, 10), layer=1)
    assert [step(whole, numbered(1, count, 10)) for count in (1, 2, 3)] == [0, 0, 3]
    assert tokens_read(whole, 1) == list(range(13))


def test_forks_go_their_own_ways() -> None:
    for reposition in (False, True):
        options = {"budget": 5, "sinks": 1, "reposition": reposition, "rolling": True}
        store = opened(methods.create("streaming_llm", **options), numbered(2, 20))
        fork = copy.deepcopy(store)
        turned = store.select_rows([1, 0, 1])
        assert step(store, numbered(2, 9, 20), 9) == 9
        assert tokens_read(fork, 1)[-4:] == [16, 17, 18, 19]
        assert tokens_read(turned, 5)[-4:] == [16, 17, 18, 19]
        assert step(turned, numbered(3, 2, 20), 2) == 0
        assert tokens_read(turned, 5)[-2:] == [18, 19]


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (query @ keys.T * 0.5).softmax(dim=-1) @ values


@pytest.mark.parametrize("steps", [0, 3, 12])
def test_repositioned_entries_are_numbered_inside_the_cache(steps: int) -> None:
    """Keys before their rotation, rotated by their place in the cache, give the same attention."""
    generator = torch.Generator().manual_seed(0)
    total, sinks, budget = 30 + steps, 3, 9
    plain, values = torch.randn(2, total, DIM, generator=generator)
    query = torch.randn(1, DIM, generator=generator)
    rotated = ROTATION.rotate(plain, torch.arange(total))
    method = methods.create(
        "streaming_llm", rolling=True, budget=budget, sinks=sinks, reposition=True
    )
    observed = Observed(
        torch.zeros(1, 2, 0, DIM),
        rotated[:30].expand(1, 2, 30, DIM),
        values[:30].expand(1, 2, 30, DIM),
        0.5,
        rotation=ROTATION,
    )
    selection = method.select_observed(observed)
    assert selection.keep is not None
    prefix = pack(observed.keys, observed.values, selection.keep)
    store: Any = method.open_store(prefix, observed, None, selection)
    start = 30
    for now in range(31, total + 1):
        part = slice(start, now)
        tail = rotated[part].expand(1, 2, -1, DIM), values[part].expand(1, 2, -1, DIM)
        start += store.absorb(torch.zeros(1, 2, 1, DIM), *tail, 0.5, None)
    prefix, _ = store.read(torch.zeros(1, 2, 1, DIM), 0.5)
    keys, stored_values, _ = prefix.row(0, 1)
    found = attend(
        ROTATION.rotate(query, torch.tensor([total])),
        torch.cat([keys, rotated[start:]]),
        torch.cat([stored_values, values[start:]]),
    )
    cache = [*range(sinks), *range(total - (budget - sinks), total)]
    expected = attend(
        ROTATION.rotate(query, torch.tensor([budget])),
        ROTATION.rotate(plain[cache], torch.arange(budget)),
        values[cache],
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_repositioning_without_rolling_closes_the_gap_once() -> None:
    options = {"budget": 5, "sinks": 1, "rolling": False}
    store = opened(methods.create("streaming_llm", reposition=True, **options), numbered(1, 20))
    assert step(store, numbered(1, 300, 20), 300) == 0
    assert store.lengths().tolist() == [[5, 5]]
    assert opened(methods.create("streaming_llm", **options), numbered(1, 20)) is None


@pytest.mark.parametrize("name", ["streaming_llm", "sliding_window", "duo_attention"])
def test_other_stores_need_an_unchanging_prefix(name: str) -> None:
    options = {"pattern": [[0.0, 1.0]]} if name == "duo_attention" else {}
    with pytest.raises(UserError, match="rolling=False"):
        methods.create(name, store="int8", rolling=True, **options)
    assert methods.create(name, store="int8", rolling=False, **options).store == "int8"
