"""What the analyses measure, against the plain definitions."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.simcalkv.analyses import (
    attention_histogram,
    attention_map,
    attention_rows,
    key_maps,
    most_similar,
    query_sums,
    similar_shares,
)
from experiments.simcalkv.step_error import VARIANTS, grouped, quartiles, step_errors
from experiments.simcalkv.tensors import LayerTensors, Recorded

HEADS, GROUP, DIM = 2, 2, 16
SCALING = 0.25


def layer(tokens: int, seed: int = 0) -> LayerTensors:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(HEADS * GROUP, tokens, DIM, generator=generator)
    keys, values = torch.randn(2, HEADS, tokens, DIM, generator=generator)
    return LayerTensors(queries, keys, values, SCALING)


def full_attention(given: LayerTensors, head: int) -> torch.Tensor:
    tokens = given.keys.shape[1]
    logits = given.queries[head] @ given.keys[head // GROUP].T * SCALING
    return logits.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf).softmax(-1)


def test_attention_of_a_part_of_the_queries() -> None:
    given = layer(30)
    torch.testing.assert_close(attention_rows(given, 3, 7, 19), full_attention(given, 3)[7:19])


def test_the_histogram_counts_every_visible_weight() -> None:
    given = layer(300)
    counts = attention_histogram(given, 1, bins=10)
    weights = full_attention(given, 1)[torch.ones(300, 300).tril().bool()]
    assert int(counts.sum()) == 300 * 301 // 2
    # the first query sees itself only
    assert int(counts[-1]) == int((weights >= 0.9).sum()) >= 1
    assert int(counts[0]) == int((weights < 0.1).sum())


def test_the_map_keeps_the_largest_weight_of_neighbours() -> None:
    given = layer(50)
    whole = full_attention(given, 0)
    torch.testing.assert_close(attention_map(given, 0), whole)
    small = attention_map(given, 0, size=10)
    assert small.shape == (10, 10)
    assert float(small[4, 2]) == pytest.approx(float(whole[20:25, 10:15].max()))


def test_maps_of_keys() -> None:
    given = layer(12)
    maps = key_maps(given, 1)
    keys = given.keys[1]
    cosine = torch.cosine_similarity(keys[2], keys[7], dim=0)
    assert float(maps.cosine[2, 7]) == pytest.approx(float(cosine), abs=1e-6)
    assert float(maps.distance[2, 7]) == pytest.approx(float((keys[2] - keys[7]).norm()), abs=1e-5)
    values, places = most_similar(maps.cosine, 3)
    for position in range(12):
        order = maps.cosine[position].argsort(descending=True).tolist()
        order.remove(position)
        assert places[position].tolist() == order[:3]
        assert values[position].tolist() == maps.cosine[position][order[:3]].tolist()
    assert most_similar(maps.cosine[:3, :3])[0].shape == (3, 2)


def test_shares_of_similar_keys() -> None:
    # two groups of equal keys at a right angle: 6 and 2 of them
    keys = torch.zeros(1, 8, 2)
    keys[0, :6, 0], keys[0, 6:, 1] = 3.0, 1.0
    given = LayerTensors(keys, keys, keys, 1.0)
    (found,) = similar_shares(Recorded(8, {5: given}), (-0.5, 0.5, 0.999))
    assert (found.layer, found.kv_head) == (5, 0)
    inside = (6 * 5 + 2) / (8 * 7)
    assert found.pairs == pytest.approx((1.0, inside, inside))
    assert found.nearest == (1.0, 1.0, 1.0)


def test_sums_of_queries_and_what_they_make_of_the_constant() -> None:
    given = layer(20)
    given.queries[2, 15:] = 0.5  # components sum to 8 = 2 / scaling
    found = query_sums(Recorded(15, {0: given}))
    assert [one.query_head for one in found] == [0, 1, 2, 3]
    own = found[2]
    assert own.steps == (8.0,) * 5
    assert (own.mean, own.spread) == (8.0, 0.0)
    assert own.shift == pytest.approx(2 * math.log(2))
    assert own.needed == pytest.approx(math.log(2) / 2)
    sums = given.queries[0, 15:].sum(-1)
    assert found[0].mean == pytest.approx(float(sums.mean()))
    assert found[0].spread == pytest.approx(float(sums.std(correction=0)))


def attend(query, keys, values, bias=0.0) -> torch.Tensor:
    return (keys @ query * SCALING + bias).softmax(0) @ values


def test_step_errors_are_those_of_attention_over_what_is_left() -> None:
    given = layer(41)
    recorded = Recorded(40, {2: given})
    errors = list(step_errors("a", recorded, [0.5]))
    assert len(errors) == len(VARIANTS) * HEADS * GROUP
    sums = torch.stack([full_attention(given, h)[:40, :40].sum(0) for h in range(4)])
    for head in range(HEADS):
        removed = sums.unflatten(0, (HEADS, GROUP)).mean(1)[head].argsort()[:20]
        stays = [t for t in range(41) if t not in removed.tolist()]
        for member in range(head * GROUP, (head + 1) * GROUP):
            query = given.queries[member, 40]
            full = attend(query, given.keys[head], given.values[head])
            evicted = attend(query, given.keys[head, stays], given.values[head, stays])
            expected = float((evicted - full).norm() / full.norm())
            (found,) = (one for one in errors if (one.query_head, one.variant) == (member, "evict"))
            assert found.error == pytest.approx(expected, rel=1e-4)
            assert found.shift == pytest.approx(
                float(query.sum()) * SCALING * math.log(2), rel=1e-4
            )


def test_equal_keys_are_merged_without_error_only_with_the_logit() -> None:
    given = layer(41)
    given.keys[:, :40] = given.keys[:, :1].clone()
    found = grouped(step_errors("a", Recorded(40, {0: given}), [0.5]), "variant")
    largest = {key[0]: max(one.error for one in group) for key, group in found.items()}
    assert largest["merge, logit"] < 1e-5
    assert largest["merge, logit, uniform"] < 1e-5
    for name in ("evict", "merge, none", "merge, key_const"):
        assert largest[name] > 0.01


def test_quartiles() -> None:
    assert quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == (2.0, 3.0, 4.0, 5)
