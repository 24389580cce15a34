"""CateKV whose adaptive heads read a part of what they keep: with Quest or ShadowKV."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_cases import (
    DIM,
    GROUP,
    compressed,
    random_layer,
    read_tokens,
    sequence,
    step_output,
    step_queries,
    store_output,
)

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.methods.head_mask import HeadMask
from catekv.models.rotation import Rotation

#: head 1 is adaptive in the layer that the cases observe
MASK = HeadMask(torch.tensor([[0, 1]] * 4), {"ratio": 0.5})
CHUNK = 4
SMALL: dict[str, Any] = {
    "head_mask": MASK,
    "budget": 40,
    "window": 6,
    "chunk_size": CHUNK,
    "init_tokens": 8,
    "recent_tokens": 16,
    "guard_tokens": 8,
}
ROTATION = Rotation(100.0 ** -torch.linspace(0, 0.75, DIM // 2))


def catekv(read: str, **options: Any) -> methods.Method:
    return methods.create("catekv", read=read, **{**SMALL, **options})


def layer(batch: int, tokens: int):
    return random_layer(batch, tokens, window=6, rotation=ROTATION)


@pytest.mark.parametrize("retention", [1.0, 0.6])
def test_adaptive_heads_read_their_best_chunks_and_the_tail(retention: float) -> None:
    method = catekv("quest", retention=retention)
    prefix, store = compressed(method, layer(1, 203))
    queries = step_queries(1)
    _, blocks = store.read(queries, DIM**-0.5)
    tail = method.layout(203).tail
    assert tail == 11
    kept = prefix.host_rows[1][1]
    body = kept - tail
    assert body % CHUNK == 0
    scores = kernels.page_scores(queries, kernels.page_bounds(prefix, CHUNK))[0, 1]
    best = scores[: body // CHUNK].topk(40 // CHUNK).indices.tolist()
    expected = {CHUNK * chunk + i for chunk in best for i in range(CHUNK)}
    assert read_tokens(blocks, prefix, 1) == sorted(expected | set(range(body, kept)))
    # what an adaptive head reads is as long as what a consistent head keeps
    assert len(read_tokens(blocks, prefix, 1)) == prefix.host_rows[0][1]


def test_consistent_heads_read_all_they_keep() -> None:
    prefix, store = compressed(catekv("quest"), layer(1, 203))
    _, blocks = store.read(step_queries(1), DIM**-0.5)
    assert read_tokens(blocks, prefix, 0) == list(range(prefix.host_rows[0][1]))


def test_what_is_kept_does_not_depend_on_what_is_read() -> None:
    observed = layer(1, 203)
    kept = [catekv(read).select_padded([observed], None)[0].keep for read in ("all", "quest")]
    assert torch.equal(kept[0], kept[1])


def test_reading_all_needs_no_store() -> None:
    assert compressed(catekv("all"), layer(1, 203))[1] is None


@pytest.mark.parametrize("read", ["quest", "shadowkv"])
def test_prompts_within_the_budget_are_read_whole(read: str) -> None:
    prefix, store = compressed(catekv(read), layer(1, 48))
    assert store is None
    assert prefix.uniform_length == 48


@pytest.mark.parametrize("read", ["quest", "shadowkv"])
def test_a_padded_batch_equals_its_single_prompts(read: str) -> None:
    method = catekv(read, rank=6, outliers=3, local=2)
    observed = layer(3, 203)
    valid = torch.ones(3, 203, dtype=torch.bool)
    valid[1, :31] = False
    valid[2, :160] = False
    store = compressed(method, observed, valid)[1]
    for queries in (step_queries(3), step_queries(3, tokens=4)):
        together = store_output(store, queries)
        for b, start in enumerate((0, 31, 160)):
            prefix, alone = compressed(method, sequence(observed, b, start))
            own = queries[b : b + 1]
            expected = step_output(prefix, own) if alone is None else store_output(alone, own)
            torch.testing.assert_close(together[b : b + 1], expected, rtol=1e-4, atol=1e-4)


def test_with_shadows_of_full_rank_a_question_equals_reading_all() -> None:
    observed = layer(1, 203)
    prefix, store = compressed(catekv("shadowkv", rank=DIM, outliers=3, local=2), observed)
    queries = step_queries(1, tokens=3)
    torch.testing.assert_close(
        store_output(store, queries), step_output(prefix, queries), rtol=1e-4, atol=1e-4
    )


def test_only_adaptive_heads_have_a_shadow() -> None:
    prefix, store = compressed(catekv("shadowkv", outliers=3, local=2), layer(2, 203))
    assert store.shadow.rows == (1, 3)
    consistent = prefix.host_rows[0][1]
    local = 203 - (203 // CHUNK - 2) * CHUNK
    assert [length for _, length in store.assembled.host_rows] == [
        consistent,
        3 * CHUNK + local + 40,
    ] * 2
    queries = step_queries(2)
    group = slice(0, GROUP)  # the query heads of the consistent head
    torch.testing.assert_close(
        store_output(store, queries)[:, group], step_output(prefix, queries)[:, group]
    )


def test_bad_combinations_are_refused() -> None:
    with pytest.raises(UserError, match="unknown read 'x'; use all, quest, shadowkv"):
        catekv("x")
    with pytest.raises(UserError, match="drops some; set retention=1"):
        catekv("shadowkv", retention=0.5)
    with pytest.raises(UserError, match="catekv with read='shadowkv' rebuilds keys"):
        compressed(catekv("shadowkv"), random_layer(1, 203, window=6))
