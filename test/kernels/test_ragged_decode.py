"""The vectorised torch path against the definition, which is checked against plain attention."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from catekv import kernels
from catekv.kernels import ragged_decode_reference, ragged_decode_torch
from catekv.kernels.ragged import RaggedPrefix, from_rows

HEADS, GROUP, DIM, VALUE_DIM = 3, 2, 8, 6


def ragged(
    lengths: list[int], *, bias: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32
) -> RaggedPrefix:
    """A prefix with these row lengths, stored in row order."""
    generator = torch.Generator().manual_seed(seed)
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    keys = torch.randn(start, DIM, generator=generator).to(dtype)
    values = torch.randn(start, VALUE_DIM, generator=generator).to(dtype)
    logits = torch.randn(start, generator=generator) if bias else None
    return from_rows(keys, values, logits, rows, HEADS)


def inputs(
    batch: int, query_tokens: int, tail: int, seed: int = 7, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, HEADS * GROUP, query_tokens, DIM, generator=generator)
    tail_keys = torch.randn(batch, HEADS, tail, DIM, generator=generator)
    tail_values = torch.randn(batch, HEADS, tail, VALUE_DIM, generator=generator)
    return queries.to(dtype), tail_keys.to(dtype), tail_values.to(dtype)


LENGTHS = {
    "equal": [5] * 6,
    "two": [9, 4, 9, 4, 9, 9],
    "all different": [1, 12, 7, 3, 20, 5],
    "empty rows": [0, 6, 0, 6, 2, 0],
    "nothing": [0] * 6,
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("query_tokens", "tail"), [(1, 1), (1, 5), (4, 4), (3, 7)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_torch_path_equals_the_definition(
    lengths: list[int], query_tokens: int, tail: int, bias: bool
):
    prefix = ragged(lengths, bias=bias)
    queries, keys, values = inputs(2, query_tokens, tail)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shares", [1, 2, 4])
@pytest.mark.parametrize("query_tokens", [1, 3])
@pytest.mark.parametrize("lengths", [[8] * 6, [8, 4, 8, 4, 8, 8], [0, 8, 0, 8, 0, 8]])
def test_shares_of_rows_and_the_tail_combine_to_the_whole(
    lengths: list[int], query_tokens: int, shares: int, monkeypatch: pytest.MonkeyPatch
):
    module = importlib.import_module("catekv.kernels.ragged_decode")
    monkeypatch.setattr(module, "_shares", lambda rows, length: shares)
    stored = ragged(lengths)
    # torch's FlashAttention wants values as wide as keys
    prefix = dataclasses.replace(stored, values=stored.keys.flip(0))
    queries, keys, _ = inputs(2, query_tokens, 5)
    values = keys.flip(2)
    queries = 4 * queries  # uneven parts: a wrong weight shows
    found = ragged_decode_torch(queries, prefix, keys, values, 0.4)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4)
    assert float((found - expected).abs().max()) < 1e-5


def test_more_lengths_than_buckets():
    lengths = [(7 * i) % 23 + 1 for i in range(24)]
    prefix = ragged(lengths, bias=True)
    assert any(bucket.start is None for bucket in prefix.buckets)
    queries, keys, values = inputs(8, 2, 3)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("order", [[0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0, 1], [1, 1]])
def test_beams_share_rows(order: list[int]):
    prefix = ragged(LENGTHS["two"]).select_rows(order)
    queries, keys, values = inputs(len(order), 1, 3)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


def test_tail_mask_hides_columns():
    prefix = ragged(LENGTHS["two"])
    queries, keys, values = inputs(2, 2, 5)
    mask = torch.ones(2, 1, 2, 5, dtype=torch.bool).tril(3)
    mask[0, ..., 1] = False
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4, mask)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4, mask)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)
    moved = keys.clone()
    moved[0, :, 1] += 100.0
    again = ragged_decode_torch(queries, prefix, moved, values, 0.4, mask)
    assert torch.equal(actual, again)


def test_queries_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch):
    prefix = ragged(LENGTHS["all different"])
    queries, keys, values = inputs(2, 9, 11)
    whole = ragged_decode_torch(queries, prefix, keys, values, 0.4)
    module = importlib.import_module("catekv.kernels.ragged_decode")
    monkeypatch.setattr(module, "MAX_LOGITS", 50)
    torch.testing.assert_close(
        ragged_decode_torch(queries, prefix, keys, values, 0.4), whole, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_stays_close_to_the_definition(dtype: torch.dtype, tolerance: float):
    prefix = ragged(LENGTHS["two"], dtype=dtype)
    queries, keys, values = inputs(2, 1, 3, dtype=dtype)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_definition_is_softmax_attention_over_prefix_and_tail():
    """Equal lengths: the definition against torch's own attention, with repeated heads."""
    prefix = ragged([5] * 6)
    queries, tail_keys, tail_values = inputs(2, 3, 4)
    keys = torch.cat([prefix.keys.view(2, HEADS, 5, DIM), tail_keys], dim=2)
    values = torch.cat([prefix.values.view(2, HEADS, 5, VALUE_DIM), tail_values], dim=2)
    mask = torch.ones(3, 9, dtype=torch.bool).tril(6)
    expected = F.scaled_dot_product_attention(
        queries,
        keys.repeat_interleave(GROUP, dim=1),
        values.repeat_interleave(GROUP, dim=1),
        mask,
        scale=0.4,
    )
    actual = ragged_decode_reference(queries, prefix, tail_keys, tail_values, 0.4)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


def test_bias_is_the_logarithm_of_how_often_an_entry_counts():
    """Two equal entries and one entry with log(2) are the same to every query."""
    single = from_rows(
        torch.ones(3, DIM), torch.ones(3, VALUE_DIM), None, [(0, 1), (1, 1), (2, 1)], HEADS
    )
    keys, values = torch.randn(1, DIM), torch.randn(1, VALUE_DIM)
    twice = from_rows(keys.repeat(6, 1), values.repeat(6, 1), None, [(0, 2), (2, 2), (4, 2)], HEADS)
    merged = from_rows(
        keys.repeat(3, 1),
        values.repeat(3, 1),
        torch.full((3,), 2.0).log(),
        single.host_rows,
        HEADS,
    )
    queries, tail_keys, tail_values = inputs(1, 1, 2)
    torch.testing.assert_close(
        kernels.ragged_decode(queries, twice, tail_keys, tail_values, 0.4),
        kernels.ragged_decode(queries, merged, tail_keys, tail_values, 0.4),
        atol=1e-6,
        rtol=0,
    )


def test_every_backend_is_reachable_by_name():
    prefix = ragged(LENGTHS["two"])
    queries, keys, values = inputs(2, 1, 3)
    results = [
        kernels.ragged_decode(queries, prefix, keys, values, 0.4, backend=name)
        for name in kernels.backends()
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=2e-6, rtol=0)
