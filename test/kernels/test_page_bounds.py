"""Bounds of whole pages: never below a true product, and the same from every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels.page_bounds import REDUCTIONS
from catekv.kernels.ragged import RaggedPrefix, from_rows

BATCH, HEADS, GROUP, DIM = 2, 2, 3, 24
LENGTHS = [37, 0, 16, 5]
BACKENDS = ["torch", "triton"]


def prefix_of(
    lengths: list[int], dtype: torch.dtype = torch.float32, heads: int = HEADS
) -> RaggedPrefix:
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    keys = torch.randn(start, DIM, generator=torch.Generator().manual_seed(3)).to(dtype)
    return from_rows(keys, keys, None, rows, heads)


def queries_of(tokens: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """As a model's projection leaves them: tokens before heads in memory."""
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(BATCH, tokens, HEADS * GROUP, DIM, generator=generator)
    return queries.to(dtype).transpose(1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [3, 16, 40])
def test_bounds_hold_the_extremes_of_their_own_entries(backend: str, dtype: torch.dtype, size: int):
    prefix = prefix_of(LENGTHS, dtype)
    bounds = kernels.page_bounds(prefix, size, backend=backend)
    assert bounds.low.shape == (4, -(-max(LENGTHS) // size), DIM)
    assert bounds.low.dtype == dtype
    for row, length in enumerate(LENGTHS):
        keys = prefix.row(row // HEADS, row % HEADS)[0]
        for page in range(bounds.pages):
            entries = keys[page * size : (page + 1) * size]
            low = entries.amin(dim=0) if page * size < length else torch.zeros(DIM, dtype=dtype)
            high = entries.amax(dim=0) if page * size < length else torch.zeros(DIM, dtype=dtype)
            assert torch.equal(bounds.low[row, page], low)
            assert torch.equal(bounds.high[row, page], high)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["max", "mean", "sum"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_scores_are_the_sums_of_the_larger_products(
    backend: str, dtype: torch.dtype, reduction: str, tokens: int
):
    size = 8
    bounds = kernels.page_bounds(prefix_of(LENGTHS, dtype), size)
    queries = queries_of(tokens, dtype)
    scores = kernels.page_scores(queries, bounds, reduction, backend=backend)
    assert scores.shape == (BATCH, HEADS, bounds.pages)
    grouped = queries.float().unflatten(1, (HEADS, GROUP)).flatten(2, 3).flatten(0, 1)
    low, high = bounds.low.float()[:, None], bounds.high.float()[:, None]
    products = torch.maximum(grouped[:, :, None] * high, grouped[:, :, None] * low).sum(dim=-1)
    expected = getattr(products, {"max": "amax"}.get(reduction, reduction))(dim=1)
    for row, length in enumerate(LENGTHS):
        expected[row, -(-length // size) :] = -torch.inf
    torch.testing.assert_close(scores.flatten(0, 1), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_product_exceeds_its_bound(backend: str):
    prefix, size = prefix_of(LENGTHS), 8
    queries = queries_of()
    scores = kernels.page_scores(queries, kernels.page_bounds(prefix, size), backend=backend)
    for row, length in enumerate(LENGTHS):
        b, head = divmod(row, HEADS)
        keys = prefix.row(b, head)[0]
        products = queries[b, head * GROUP : (head + 1) * GROUP, 0] @ keys.T
        for page in range(-(-length // size)):
            largest = products[:, page * size : (page + 1) * size].max()
            assert scores[b, head, page] >= largest - 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_reference_bounds(backend: str, golden):
    for case in golden("baselines", "quest"):
        given = case["inputs"]
        keys, query = torch.tensor(given["keys"]), torch.tensor(given["query"])
        prefix = from_rows(keys, keys, None, [(0, len(keys))], 1)
        bounds = kernels.page_bounds(prefix, given["page"], backend=backend)
        scores = kernels.page_scores(query[None, None, None], bounds, backend=backend)
        assert scores[0, 0].tolist() == pytest.approx(case["expected"]["bounds"], abs=1e-5)
        pages = kernels.top_pages(scores, given["top_pages"], given["page"])
        assert pages.indices[0].tolist() == case["expected"]["pages"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_reference_chunk_scores_of_a_group(backend: str, golden):
    for case in golden("catekv", "quest_chunk_scores"):
        given = case["inputs"]
        keys, queries = torch.tensor(given["keys"]).float(), torch.tensor(given["q_group"])
        prefix = from_rows(keys, keys, None, [(0, len(keys))], 1)
        bounds = kernels.page_bounds(prefix, given["page"], backend=backend)
        scores = kernels.page_scores(queries[None, :, None], bounds, backend=backend)
        assert scores[0, 0].tolist() == pytest.approx(case["expected"]["scores"], abs=1e-5)
        pages = kernels.top_pages(scores, given["top"], given["page"])
        assert pages.indices[0].tolist() == case["expected"]["best_first"]


def test_top_pages_never_lists_what_a_row_does_not_have():
    scores = torch.full((1, 3, 5), -torch.inf)
    scores[0, 0] = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2])
    scores[0, 1, :2] = torch.tensor([-3.0, -2.0])
    pages = kernels.top_pages(scores, 3, 16)
    assert pages.indices.dtype == pages.counts.dtype == torch.int32
    assert pages.counts.tolist() == [3, 2, 0]
    assert pages.indices[0].tolist() == [3, 1, 2]
    assert pages.indices[1, :2].tolist() == [1, 0]
    assert pages.size == 16


def test_equal_pages_are_listed_in_their_order():
    scores = torch.tensor([1.0, 2, 2, 1, 2, 1, 1, 2, 0, 0]).expand(1, 2, 10)
    pages = kernels.top_pages(scores, torch.tensor([[2, 6]]), 4)
    assert pages.indices[1, :6].tolist() == [1, 2, 4, 7, 0, 3]
    assert pages.indices[0, :2].tolist() == [1, 2]
    assert kernels.top_pages(torch.zeros(1, 1, 40), 3, 4).indices.tolist() == [[0, 1, 2]]


def test_top_pages_takes_a_number_for_every_row():
    scores = torch.arange(10.0).view(1, 2, 5)
    pages = kernels.top_pages(scores, torch.tensor([[1, 9]]), 4, capacity=3)
    assert pages.counts.tolist() == [1, 3]
    assert pages.indices.tolist() == [[4, 3, 2], [4, 3, 2]]


def test_reading_the_listed_pages_is_attention_over_their_entries():
    """The list is one that ``ragged_decode`` reads: all pages give what reading everything does."""
    prefix = prefix_of(LENGTHS)
    queries = queries_of()
    tail = torch.randn(BATCH, HEADS, 2, DIM, generator=torch.Generator().manual_seed(5))
    scores = kernels.page_scores(queries, kernels.page_bounds(prefix, 8))
    pages = kernels.top_pages(scores, 5, 8)
    listed = kernels.ragged_decode(queries, prefix, tail, tail, 0.3, blocks=pages)
    whole = kernels.ragged_decode(queries, prefix, tail, tail, 0.3)
    torch.testing.assert_close(listed, whole, atol=1e-5, rtol=0)


def test_an_unknown_reduction_is_refused():
    bounds = kernels.page_bounds(prefix_of(LENGTHS), 8)
    with pytest.raises(UserError, match="unknown reduction 'median'; use max, mean, sum"):
        kernels.page_scores(queries_of(), bounds, "median")


def test_queries_beyond_two_to_the_31_numbers_apart():
    """Memory that nobody touches costs nothing."""
    keys = torch.randn(40, 16)
    prefix = from_rows(keys, keys, None, [(0, 33), (33, 7)], 2)
    bounds = kernels.page_bounds(prefix, 8)
    queries, apart = torch.randn(1, 2, 5, 16), 1 << 29
    far = torch.empty(4 * apart + 32).as_strided(queries.shape, (1, 16, apart, 1))
    far.copy_(queries)
    for reduction in REDUCTIONS:
        torch.testing.assert_close(
            kernels.page_scores(far, bounds, reduction, backend="triton"),
            kernels.page_scores(queries, bounds, reduction, backend="torch"),
        )
