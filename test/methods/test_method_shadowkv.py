"""ShadowKV: landmarks, outliers, low-rank keys, and what a step brings in."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from decode_cases import (
    DIM,
    GROUP,
    HEADS,
    compressed,
    random_layer,
    restricted,
    sequence,
    step_output,
    step_queries,
    store_output,
)

from catekv import methods
from catekv.errors import UserError
from catekv.methods.stores import shadow_reader
from catekv.methods.stores.low_rank import chunk_landmarks, low_rank, outlier_chunks
from catekv.models.rotation import Rotation

KEYS = [
    [1, 0, 0.1, 0],
    [0.9, 0.1, 0, 0],
    [0, -2, 0, 0.1],
    [0, -1.5, 0.1, 0],
    [0.2, 0.2, 0.2, 0.2],
    [0.1, 0, 0.3, 0],
]
ROTATION = Rotation(100.0 ** -torch.linspace(0, 0.75, DIM // 2))
SMALL = {"budget": 12, "chunk": 4, "outliers": 2, "local": 2}
FULL_RANK = HEADS * DIM


def layer(batch: int, tokens: int, seed: int = 0):
    return random_layer(batch, tokens, seed, rotation=ROTATION)


def test_worked_example() -> None:
    landmarks, cosine = chunk_landmarks(torch.tensor(KEYS, dtype=torch.float32), 2)
    expected = torch.tensor([0.996938, 0.998871, 0.87831])
    torch.testing.assert_close(cosine, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(landmarks[0], torch.tensor([0.95, 0.05, 0.05, 0.0]))
    assert outlier_chunks(cosine, 1).tolist() == [2]


def test_golden_landmarks(golden) -> None:
    for case in golden("baselines", "shadowkv"):
        given, expected = case["inputs"], case["expected"]
        keys = torch.tensor(given["keys"], dtype=torch.float32)
        landmarks, cosine = chunk_landmarks(keys, given["chunk"])
        for found, name in ((landmarks, "landmarks"), (cosine, "min_cosine")):
            torch.testing.assert_close(found, torch.tensor(expected[name]), rtol=1e-5, atol=1e-5)
        assert outlier_chunks(cosine, given["outliers"]).tolist() == expected["outliers"]


@pytest.mark.parametrize("rank", [1, 3, 10, FULL_RANK])
def test_keys_before_rotation_are_approximated_as_well_as_a_rank_allows(rank: int) -> None:
    keys = layer(1, 70).keys[0]
    factors, bases = low_rank(list(keys), ROTATION, rank)
    assert factors.shape == (70, rank)
    plain = ROTATION.unrotate(keys, torch.arange(70)).transpose(0, 1).reshape(70, -1)
    rebuilt = (factors @ bases).transpose(0, 1).reshape(70, -1)
    left_out = torch.linalg.svdvals(plain)[rank:]
    error = (plain - rebuilt).square().sum()
    torch.testing.assert_close(error, left_out.square().sum(), rtol=1e-3, atol=1e-4)


def test_with_full_rank_a_question_equals_full_attention() -> None:
    observed = layer(2, 90)
    prefix, store = compressed(methods.create("shadowkv", rank=FULL_RANK, **SMALL), observed)
    queries = step_queries(2, tokens=5)
    torch.testing.assert_close(
        store_output(store, queries), step_output(prefix, queries), rtol=1e-4, atol=1e-4
    )


def test_a_step_with_all_chunks_but_one_equals_full_attention_without_that_one() -> None:
    observed = layer(1, 50)
    method = methods.create("shadowkv", rank=FULL_RANK, budget=36, chunk=4, outliers=0, local=2)
    prefix, store = compressed(method, observed)
    queries = step_queries(1)
    chosen = store.shadow.best_chunks(queries.view(HEADS, GROUP, DIM), DIM**-0.5)
    assert chosen.shape == (HEADS, 9)  # of ten; tokens from 40 on are exact
    tokens = [
        [4 * chunk + i for chunk in sorted(row) for i in range(4)] + list(range(40, 50))
        for row in chosen.tolist()
    ]
    expected = step_output(restricted(observed, tokens), queries)
    torch.testing.assert_close(store_output(store, queries), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, step_output(prefix, queries), rtol=1e-3, atol=1e-3)


def test_a_step_reads_the_best_chunks_the_outliers_and_the_newest_tokens() -> None:
    observed = layer(2, 91)
    _, store = compressed(methods.create("shadowkv", rank=FULL_RANK, **SMALL), observed)
    chunks = 91 // 4 - 2
    queries = step_queries(2)
    tokens = []
    for row in range(2 * HEADS):
        b, head = divmod(row, HEADS)
        keys = observed.keys[b, head]
        landmarks, cosine = chunk_landmarks(keys[: 4 * chunks], 4)
        exact = outlier_chunks(cosine, 2)
        logits = queries[b].view(HEADS, GROUP, DIM)[head] @ landmarks.T * DIM**-0.5
        logits[:, exact] = -torch.inf
        best = logits.softmax(dim=-1).amax(dim=0).topk(3).indices
        read = sorted({*exact.tolist(), *best.tolist()})
        assert len(read) == 5
        tokens.append([4 * c + i for c in read for i in range(4)] + list(range(4 * chunks, 91)))
    expected = step_output(restricted(observed, tokens), queries)
    for _ in range(2):  # a step leaves nothing behind for the next
        torch.testing.assert_close(store_output(store, queries), expected, rtol=1e-4, atol=1e-4)
        store_output(store, step_queries(2, seed=9))


def test_a_low_rank_frees_keys_and_all_values_lie_on_the_host() -> None:
    observed = layer(1, 400)
    prefix, store = compressed(methods.create("shadowkv", rank=4, **SMALL), observed)
    assert store.lengths().tolist() == [[400, 400]]
    shadow = store.shadow
    assert shadow.values.numel() == HEADS * (400 // 4 - 2) * 4 * DIM
    assert shadow.factors.numel() + shadow.bases.numel() < prefix.keys.numel() / 2
    assert store.assembled.slots == HEADS * (2 * 4 + 2 * 4 + 12)
    held = {tensor.data_ptr() for tensor in store.tensors()}
    assert {shadow.values.data_ptr(), store.assembled.keys.data_ptr()} <= held
    assert prefix.keys.data_ptr() not in held


def test_short_prompts_are_kept_whole() -> None:
    method = methods.create("shadowkv", **SMALL)
    assert compressed(method, layer(1, (3 + 2 + 2) * 4))[1] is None
    assert compressed(method, layer(1, (3 + 2 + 2 + 1) * 4))[1] is not None


def test_a_padded_batch_equals_its_single_prompts() -> None:
    observed = layer(3, 90)
    valid = torch.ones(3, 90, dtype=torch.bool)
    valid[1, :33] = False
    valid[2, :70] = False  # shorter than what a step reads
    method = methods.create("shadowkv", rank=6, **SMALL)
    store = compressed(method, observed, valid)[1]
    for queries in (step_queries(3), step_queries(3, tokens=4)):
        together = store_output(store, queries)
        for b, start in enumerate((0, 33, 70)):
            prefix, alone = compressed(method, sequence(observed, b, start))
            own = queries[b : b + 1]
            expected = step_output(prefix, own) if alone is None else store_output(alone, own)
            torch.testing.assert_close(together[b : b + 1], expected, rtol=1e-4, atol=1e-4)


def test_forks_and_rearranged_rows_fetch_chunks_of_their_own() -> None:
    _, store = compressed(methods.create("shadowkv", **SMALL), layer(3, 90))
    queries = step_queries(3)
    expected = store_output(store, queries)
    fork = copy.deepcopy(store)
    seen, _ = store.read(queries, DIM**-0.5)
    store_output(fork, step_queries(3, seed=5))
    torch.testing.assert_close(step_output(seen, queries), expected)
    assert fork.shadow is store.shadow
    order = [2, 0, 0]
    torch.testing.assert_close(
        store_output(store.select_rows(order), queries[order]), expected[order]
    )


def test_without_a_rotation_it_is_refused() -> None:
    with pytest.raises(UserError, match="shadowkv rebuilds keys before their rotation"):
        compressed(methods.create("shadowkv", **SMALL), random_layer(1, 90))


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match="budget 4 is less than one chunk of 8 tokens"):
        methods.create("shadowkv", budget=4)
    with pytest.raises(UserError, match="rank 0 must be at least 1"):
        methods.create("shadowkv", rank=0)


class FakeStream:
    """Stands where a CUDA stream or event would; what is enqueued runs at once."""

    def record(self, stream: object = None) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...


def test_values_that_come_beside_the_computation_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, store = compressed(methods.create("shadowkv", **SMALL), layer(2, 90))
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options)
    )
    monkeypatch.setattr(torch.cuda, "Event", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda given: contextlib.nullcontext())
    monkeypatch.setattr(shadow_reader, "copy_stream", lambda device: FakeStream())
    beside = copy.deepcopy(store)
    beside.transfer = shadow_reader._Transfer(store.shadow)
    for seed in range(3):
        queries = step_queries(2, seed)
        torch.testing.assert_close(store_output(beside, queries), store_output(store, queries))
    held = {tensor.data_ptr() for tensor in beside.tensors()}
    assert beside.transfer.gathered.data_ptr() in held
