"""RaggedPrefix: flat storage, sharing, sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from catekv.kernels.packing import pack, pack_merged
from catekv.kernels.ragged import MAX_BUCKETS, Merged, from_rows, storage_bytes

BATCH, HEADS, TOKENS, DIM = 2, 3, 11, 4


def tensors(value_dim: int = DIM) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(BATCH, HEADS, TOKENS, DIM, generator=generator)
    values = torch.randn(BATCH, HEADS, TOKENS, value_dim, generator=generator)
    return keys, values


def random_keep(seed: int = 1) -> Tensor:
    return torch.rand(BATCH, HEADS, TOKENS, generator=torch.Generator().manual_seed(seed)) < 0.5


def assert_rows(prefix, keys: Tensor, values: Tensor, keep: Tensor) -> None:
    for b in range(keep.shape[0]):
        for head in range(keep.shape[1]):
            row_keys, row_values, _ = prefix.row(b, head)
            assert torch.equal(row_keys, keys[b, head][keep[b, head]]), (b, head)
            assert torch.equal(row_values, values[b, head][keep[b, head]]), (b, head)
            start, length = int(prefix.offsets[b, head]), int(prefix.lengths[b, head])
            assert torch.equal(prefix.keys[start : start + length], row_keys)


def test_pack_stores_exactly_the_kept_entries_in_prompt_order():
    keys, values = tensors(value_dim=6)
    keep = random_keep()
    prefix = pack(keys, values, keep)
    assert prefix.slots == int(keep.sum())
    assert prefix.lengths.dtype == torch.int32
    assert prefix.offsets.dtype == torch.int64
    assert_rows(prefix, keys, values, keep)


def test_pack_reads_transposed_views_and_rows_that_keep_nothing():
    keys, values = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors())
    keep = random_keep()
    keep[0, 1] = False
    keep[1, 2] = False
    assert_rows(pack(keys, values, keep), keys, values, keep)


def test_keeping_everything_copies_nothing():
    keys, values = tensors()
    prefix = pack(keys, values, torch.ones(BATCH, HEADS, TOKENS, dtype=torch.bool))
    assert prefix.keys.data_ptr() == keys.data_ptr()
    assert prefix.values.data_ptr() == values.data_ptr()
    assert prefix.uniform_length == TOKENS
    assert torch.equal(prefix.dense()[0], keys)


def test_two_lengths_need_two_buckets_and_no_padding():
    keys, values = tensors()
    keep = torch.ones(BATCH, HEADS, TOKENS, dtype=torch.bool)
    keep[:, 1, 4:] = False  # consistent heads between adaptive ones
    prefix = pack(keys, values, keep)
    assert sorted((b.length, b.query_rows.shape[0]) for b in prefix.buckets) == [(4, 2), (11, 4)]
    assert all(bucket.start is not None for bucket in prefix.buckets)
    assert prefix.uniform_length is None


def test_only_rows_that_lie_in_order_are_read_without_looking_them_up():
    keys, values = tensors()
    everything = torch.ones(BATCH, HEADS, TOKENS, dtype=torch.bool)
    prefix = pack(keys, values, everything)
    assert [bucket.in_order for bucket in prefix.buckets] == [True]
    for order in ([1, 0], [0, 0], [0, 1, 1]):
        buckets = prefix.select_rows(order).buckets
        assert not any(bucket.in_order for bucket in buckets), order
    everything[:, 1, 4:] = False
    assert not any(bucket.in_order for bucket in pack(keys, values, everything).buckets)


def test_many_lengths_stay_within_the_bucket_limit_and_cover_every_row_once():
    lengths = [3 * i + 1 for i in range(25)]
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    flat = torch.randn(start, DIM)
    prefix = from_rows(flat, flat, None, rows, 5)
    assert len(prefix.buckets) <= MAX_BUCKETS
    covered = torch.cat([bucket.query_rows.flatten() for bucket in prefix.buckets])
    assert sorted(covered.tolist()) == list(range(25))


@pytest.mark.parametrize("count", [20, 300])
def test_gathered_rows_are_grouped_with_little_padding(count: int):
    lengths = [17 * i % 101 + 1 for i in range(count)]
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    flat = torch.zeros(start, DIM)
    prefix = from_rows(flat, flat, None, rows, 1)
    padded = sum(bucket.length * bucket.query_rows.shape[0] for bucket in prefix.buckets)
    covered = torch.cat([bucket.query_rows.flatten() for bucket in prefix.buckets])
    assert sorted(covered.tolist()) == list(range(count))
    assert padded <= 1.25 * start


def test_merged_entries_keep_their_bias_and_missing_ones_count_as_zero():
    entries = [
        [
            Merged(torch.randn(2 + b + h, DIM), torch.randn(2 + b + h, 6), bias)
            for h, bias in enumerate([torch.randn(2 + b), None])
        ]
        for b in range(2)
    ]
    prefix = pack_merged(entries)
    for b in range(2):
        for h in range(2):
            keys, values, bias = prefix.row(b, h)
            assert torch.equal(keys, entries[b][h].keys)
            assert torch.equal(values, entries[b][h].values)
            expected = entries[b][h].bias
            assert torch.equal(bias, torch.zeros(len(keys)) if expected is None else expected)


def test_selecting_rows_moves_no_data():
    keys, values = tensors()
    keep = random_keep()
    prefix = pack(keys, values, keep)
    selected = prefix.select_rows([1, 1, 0, 1])
    assert selected.keys.data_ptr() == prefix.keys.data_ptr()
    assert selected.slots == prefix.slots
    order = torch.tensor([1, 1, 0, 1])
    assert_rows(selected, keys[order], values[order], keep[order])
    # beams of one prompt that change places read the same rows
    assert selected.select_rows([1, 0, 2, 3]) is selected


@pytest.mark.parametrize("keep_all", [True, False])
def test_bytes_are_those_of_the_storages(keep_all: bool):
    keys, values = tensors()
    keep = torch.ones_like(random_keep()) if keep_all else random_keep()
    prefix = pack(keys, values, keep)
    assert prefix.nbytes() == storage_bytes(prefix.tensors())
    payload = 2 * int(keep.sum()) * DIM * 4
    bookkeeping = BATCH * HEADS * (8 + 4 + 8)
    assert prefix.nbytes() == payload + bookkeeping


def test_views_of_one_storage_count_once_and_as_a_whole():
    whole = torch.zeros(10, 4)
    assert storage_bytes([whole[:2], whole[3:5], whole]) == whole.numel() * 4


def test_deep_copies_share_the_immutable_storage():
    prefix = pack(*tensors(), random_keep())
    assert copy.deepcopy(prefix) is prefix
