"""Active and passive entries: none is lost, and steps read what they should."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels.ragged import storage_bytes
from catekv.methods.atskv.lsh import cosine, random_projection, sign_codes
from catekv.methods.atskv.passive import PassivePlace, mapped
from catekv.methods.atskv.tiers import HIDDEN, TwoTiers

BATCH, HEADS, GROUP, TOKENS, DIM, TOP_K = 2, 2, 2, 50, 6, 3
PROJECTION = random_projection(2, DIM, seed=0, layer=0)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KEYS, VALUES = random(BATCH, HEADS, TOKENS, DIM, seed=1), random(BATCH, HEADS, TOKENS, 5, seed=2)
VALID = torch.ones(BATCH, TOKENS, dtype=torch.bool)
VALID[1, :7] = False
ACTIVE = random(BATCH, TOKENS, seed=3) > 0.3


def split(active: Tensor = ACTIVE, top_k: int = TOP_K) -> TwoTiers:
    return TwoTiers.split(KEYS, VALUES, active, VALID, PROJECTION, top_k)


def columns_of(tiers: TwoTiers, b: int) -> tuple[list[int], list[int]]:
    return sorted(tiers.columns[b].tolist()), tiers.passive[b].columns.tolist()


def bucket_best(b: int, head: int, queries: Tensor, resting: list[int], count: int) -> list[int]:
    """Columns of the entries most like any query of its own bucket, best first: the definition."""
    asked = queries[b].view(HEADS, -1, DIM)[head]
    keys = KEYS[b, head, resting]
    same = sign_codes(asked, PROJECTION)[:, None] == sign_codes(keys, PROJECTION)
    score = cosine(asked[:, None], keys).masked_fill(~same, -2).amax(dim=0)
    order = score.sort(descending=True, stable=True).indices[:count].tolist()
    return [resting[i] for i in order if score[i] > -2]


def check_consistent(tiers: TwoTiers, active: Tensor) -> None:
    """Every valid column lies in exactly one tier, with its own keys and values."""
    for b in range(BATCH):
        present, resting = columns_of(tiers, b)
        assert present == (active[b] & VALID[b]).nonzero().squeeze(-1).tolist()
        assert resting == (~active[b] & VALID[b]).nonzero().squeeze(-1).tolist()
        keys, values, bias = tiers.block(b)
        count = len(present)
        assert keys.shape[1] == count + min(TOP_K, len(resting))
        assert torch.equal(keys[:, :count], KEYS[b][:, tiers.columns[b]])
        assert torch.equal(values[:, :count], VALUES[b][:, tiers.columns[b]])
        assert not bool(bias[:, :count].any())
        assert bool((bias[:, count:] == HIDDEN).all())
        passive = tiers.passive[b]
        assert torch.equal(passive.index.keys, KEYS[b][:, resting])
        assert torch.equal(passive.values, VALUES[b][:, resting])
        assert torch.equal(passive.index.entry_codes(), sign_codes(KEYS[b][:, resting], PROJECTION))
    assert tiers.stored()[:, 0].tolist() == VALID.sum(dim=-1).tolist()


def test_splitting_loses_nothing() -> None:
    check_consistent(split(), ACTIVE)


def test_moving_back_and_forth_loses_nothing() -> None:
    tiers = split()
    for seed in range(20):
        active = random(BATCH, TOKENS, seed=10 + seed) > random(1, seed=40 + seed)
        tiers = tiers.move(active & VALID)
        check_consistent(tiers, active)
    nothing = torch.zeros_like(VALID)
    check_consistent(tiers.move(nothing), nothing)
    check_consistent(tiers.move(nothing).move(VALID), VALID)


def test_moving_what_stays_keeps_the_passive_tier_where_it_is() -> None:
    tiers = split()
    again = tiers.move(ACTIVE & VALID)
    assert [tier.index for tier in again.passive] == [tier.index for tier in tiers.passive]


@pytest.mark.parametrize("query_tokens", [1, 4])
def test_a_step_reads_the_active_entries_and_the_best_of_the_bucket(query_tokens: int) -> None:
    tiers = split()
    queries = random(BATCH, HEADS * GROUP, query_tokens, DIM, seed=5)
    tiers.fetch(queries)
    fetched = 0
    for b in range(BATCH):
        present, resting = columns_of(tiers, b)
        keys, values, bias = tiers.block(b)
        for head in range(HEADS):
            wanted = bucket_best(b, head, queries, resting, TOP_K)
            found = tiers.slot_columns[b][head, len(present) :][: len(wanted)].tolist()
            assert found == wanted
            fetched += len(found)
            first = len(present)
            place = slice(first, first + len(wanted))
            assert torch.equal(keys[head, place], KEYS[b, head, wanted])
            assert torch.equal(values[head, place], VALUES[b, head, wanted])
            assert bias[head, first:].tolist() == (
                [0.0] * len(wanted) + [pytest.approx(HIDDEN)] * (TOP_K - len(wanted))
            )
    assert fetched > 4, "the queries found too little for the test to say anything"


def test_attention_over_a_step_equals_attention_over_active_and_fetched_entries() -> None:
    tiers = split()
    queries = random(BATCH, HEADS * GROUP, 1, DIM, seed=6)
    tail = random(2, BATCH, HEADS, 4, DIM, seed=7)
    tiers.fetch(queries)
    output = kernels.ragged_decode(queries, tiers.prefix, tail[0], tail[1][..., :5], 0.4)
    for b in range(BATCH):
        present, resting = columns_of(tiers, b)
        for query_head in range(HEADS * GROUP):
            head = query_head // GROUP
            chosen = present + bucket_best(b, head, queries, resting, TOP_K)
            keys = torch.cat([KEYS[b, head, chosen], tail[0, b, head]])
            values = torch.cat([VALUES[b, head, chosen], tail[1, b, head, :, :5]])
            wanted = (queries[b, query_head] @ keys.T * 0.4).softmax(dim=-1) @ values
            torch.testing.assert_close(output[b, query_head], wanted)


def test_the_next_step_forgets_what_was_fetched() -> None:
    tiers, fresh = split(), split()
    first, second = (random(BATCH, HEADS * GROUP, 1, DIM, seed=seed) for seed in (8, 9))
    tiers.fetch(first)
    tiers.fetch(second)
    fresh.fetch(second)
    for b in range(BATCH):
        hidden = tiers.block(b)[2] == 0
        assert torch.equal(hidden, fresh.block(b)[2] == 0)
        assert torch.equal(tiers.block(b)[0][hidden], fresh.block(b)[0][hidden])


def test_without_passive_entries_the_prefix_is_an_ordinary_one() -> None:
    tiers = split(torch.ones_like(ACTIVE))
    tiers.fetch(random(BATCH, HEADS * GROUP, 1, DIM, seed=5))
    assert tiers.prefix.bias is None
    assert tiers.prefix.slots == HEADS * int(VALID.sum())


def test_no_place_for_fetched_entries_if_none_are_wanted() -> None:
    tiers = split(top_k=0)
    tiers.fetch(random(BATCH, HEADS * GROUP, 1, DIM, seed=5))
    assert tiers.prefix.bias is None
    assert tiers.prefix.slots == HEADS * int((ACTIVE & VALID).sum())


def test_shared_tiers_are_copied_by_who_fetches_first() -> None:
    tiers = split()
    twin = tiers.share()
    assert twin.prefix.keys.data_ptr() == tiers.prefix.keys.data_ptr()
    twin.fetch(random(BATCH, HEADS * GROUP, 1, DIM, seed=5))
    assert twin.prefix.keys.data_ptr() != tiers.prefix.keys.data_ptr()
    assert twin.passive[0] is tiers.passive[0]
    check_consistent(tiers, ACTIVE)


def test_rearranged_batches_hold_their_own_sequences() -> None:
    tiers = split().rearranged([1, 0, 1])
    for b, source in enumerate([1, 0, 1]):
        present, resting = columns_of(tiers, b)
        assert present == (ACTIVE[source] & VALID[source]).nonzero().squeeze(-1).tolist()
        assert resting == (~ACTIVE[source] & VALID[source]).nonzero().squeeze(-1).tolist()
        keys, values, _ = tiers.block(b)
        assert torch.equal(keys[:, : len(present)], KEYS[source][:, present])
        assert torch.equal(values[:, : len(present)], VALUES[source][:, present])


def test_bytes_of_each_tier_are_those_of_its_entries() -> None:
    tiers = split(top_k=0)
    present = HEADS * int((ACTIVE & VALID).sum())
    resting = HEADS * int((~ACTIVE & VALID).sum())
    assert storage_bytes([tiers.prefix.keys, tiers.prefix.values]) == present * (DIM + 5) * 4
    entries = [t for tier in tiers.passive for t in (tier.index.keys, tier.values)]
    assert storage_bytes(entries) == resting * (DIM + 5) * 4
    active, passive = tiers.nbytes()
    assert active >= present * (DIM + 5) * 4
    # an entry's code and its place in the index take 16 bytes, a column 8
    assert passive == (
        resting * ((DIM + 5) * 4 + 16) + resting // HEADS * 8 + PROJECTION.numel() * 4
    )


def split_to(place: PassivePlace, active: Tensor = ACTIVE) -> TwoTiers:
    return TwoTiers.split(KEYS, VALUES, active, VALID, PROJECTION, TOP_K, place)


def test_passive_entries_may_lie_in_a_file_that_leaves_no_trace(tmp_path: Path) -> None:
    tiers = split_to(PassivePlace(str(tmp_path / "new")))
    check_consistent(tiers, ACTIVE)
    assert os.listdir(tmp_path / "new") == []
    resting = HEADS * int((~ACTIVE & VALID).sum())
    assert tiers.file_bytes() == resting * (DIM + 5) * 4
    assert split().file_bytes() == 0


def test_a_file_serves_steps_and_moves_as_memory_does(tmp_path: Path) -> None:
    tiers, other = split_to(PassivePlace(str(tmp_path))), split()
    for seed in range(4):
        queries = random(BATCH, HEADS * GROUP, 1, DIM, seed=80 + seed)
        for one in (tiers, other):
            one.fetch(queries)
        assert torch.equal(tiers.prefix.keys, other.prefix.keys)
        assert torch.equal(tiers.prefix.values, other.prefix.values)
        active = random(BATCH, TOKENS, seed=90 + seed) > 0
        tiers, other = tiers.move(active & VALID), other.move(active & VALID)
        check_consistent(tiers, active)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mapped_copies_equal_their_source(tmp_path: Path, dtype: torch.dtype) -> None:
    source = random(2, 7, 3, seed=4).to(dtype)
    assert torch.equal(mapped(source, str(tmp_path)), source)
    assert mapped(source[:, :0], str(tmp_path)).shape == (2, 0, 3)


def test_a_limit_holds_what_is_reported() -> None:
    needed = split().nbytes()[1] - PROJECTION.numel() * 4
    check_consistent(split_to(PassivePlace(limit=needed)), ACTIVE)
    with pytest.raises(UserError, match=r"the passive tier is full.*nothing was lost"):
        split_to(PassivePlace(limit=needed - 1))


def test_a_full_passive_tier_refuses_a_move_and_stays_whole() -> None:
    tiers = split_to(PassivePlace(limit=split().nbytes()[1]))
    with pytest.raises(UserError, match="the passive tier is full"):
        tiers.move(torch.zeros_like(VALID))
    check_consistent(tiers, ACTIVE)
    check_consistent(tiers.move(VALID), VALID)


def test_a_full_disk_is_an_error_that_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = split_to(PassivePlace(str(tmp_path)))

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device; nothing was lost"):
        tiers.move(torch.zeros_like(VALID))
    check_consistent(tiers, ACTIVE)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another passive_folder"):
        split_to(PassivePlace(str(tmp_path / "file" / "folder")))
