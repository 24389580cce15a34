"""The methods of 2024 to 2026 that score tokens, against their reference numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.methods import Observed, top_mask
from catekv.methods.chunkkv import chunk_means
from catekv.methods.criticalkv import first_stage
from catekv.methods.defensivekv import certain_counts, defended, largest_pooled
from catekv.methods.formulas.output_norms import output_norms
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.formulas.schedule import Clock, Schedule
from catekv.methods.held import Held
from catekv.methods.r_kv import importance, redundancy
from catekv.methods.random_attention import with_certain
from catekv.methods.triattention import series_scores
from catekv.models.rotation import Rotation


def kept(rows: Tensor) -> list[list[int]]:
    """Kept positions of every head of a mask [1, heads, tokens]."""
    return [row.nonzero().flatten().tolist() for row in rows[0]]


def near(actual: Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=tolerance, rtol=tolerance)


def test_tova_golden(golden) -> None:
    for case in golden("methods_2026", "tova"):
        attention = torch.tensor(case["inputs"]["attention"])
        # with unit vectors as keys these queries give the attention that the case has
        queries, keys = attention.log()[None, :, None], torch.eye(attention.shape[1])[None, None]
        protect = case["inputs"]["protect_last"]
        method = methods.create("tova", budget=case["inputs"]["keep"], protect_last=protect)
        near(
            method.entry_scores(Observed(queries, keys, keys, 1.0))[0, 0],
            case["expected"]["scores"],
        )
        chosen = method.select(queries, keys.expand(-1, 2, -1, -1), keys, scaling=1.0)
        assert kept(chosen.tokens) == [case["expected"]["kept"]] * 2


def test_random_attention_golden(golden) -> None:
    for case in golden("methods_2026", "random_keep"):
        draws, counts = torch.tensor(case["inputs"]["draws"]), torch.tensor(case["inputs"]["keep"])
        counts = counts.expand(draws.shape[0])
        chosen = top_mask(with_certain(draws, case["inputs"]["prompt"], counts), counts)
        assert kept(chosen[None]) == case["expected"]["kept"]


def test_decode_schedule_golden(golden) -> None:
    for case in golden("methods_2026", "decode_schedule"):
        given, expected = case["inputs"], case["expected"]
        schedule = Schedule(given["rule"], given["target"], given["interval"])
        clock = Clock(given["prompt"], given["prompt"])
        events, peak = [], clock.length
        for step in range(1, given["steps"] + 1):
            clock = clock.after(1)
            peak = max(peak, clock.length)
            if schedule.due(clock):
                events.append([step, clock.length, schedule.after_event(clock).length])
                clock = schedule.after_event(clock)
        assert events == expected["events"]
        assert (clock.length, peak) == (expected["final"], expected["peak"])


def test_r_kv_golden(golden) -> None:
    for case in golden("methods_2026", "rkv"):
        given, expected = case["inputs"], case["expected"]
        keys, queries = torch.tensor(given["keys"]), torch.tensor(given["queries"])
        scaling, window = keys.shape[-1] ** -0.5, given["window"]
        for head, own in enumerate(queries.unflatten(0, (len(keys), -1))):
            near(
                importance(own * scaling, keys[head, :-window], given["kernel"]),
                expected["importance"][head],
            )
            copied = redundancy(keys[head], given["similar"], first_column=True)
            near(copied[:-window], expected["redundancy"][head])
        method = methods.create(
            "r_kv", budget=given["budget"], window=window, kernel=given["kernel"],
            similar=given["similar"], weight=given["lambda"],
        )  # fmt: skip
        chosen = method.select(queries[None], keys[None], keys[None])
        assert kept(chosen.tokens) == expected["kept"]


def test_triattention_golden(golden) -> None:
    for case in golden("methods_2026", "triattention"):
        given, expected = case["inputs"], case["expected"]
        keys, positions = torch.tensor(given["keys"]), torch.tensor(given["positions"])
        heads, _, dim = keys.shape
        rotation = Rotation(given["theta"] ** (-torch.arange(0, dim, 2).float() / dim))
        names = ("q_mean_real", "q_mean_imag", "q_abs_mean")
        statistics = {name: torch.tensor(given[name])[None] for name in names}
        method = methods.create(
            "triattention", statistics=statistics, budget=given["keep"],
            max_offset=given["max_offset"],
        )  # fmt: skip
        prompt = given["prompt"]
        held = Held(positions[None], given["now"], prompt, torch.arange(heads))
        group = len(given["q_mean_real"]) // heads
        observed = Observed(
            torch.zeros(1, heads * group, 0, dim), keys[None], keys[None], 1.0, rotation=rotation,
            held=held,
        )  # fmt: skip
        scores = series_scores(
            method.statistics.of_heads(0, held.heads, group), keys[:, prompt:], rotation,
            given["now"], given["max_offset"],
        )  # fmt: skip
        near(scores.flatten(0, 1), expected["scores"])
        counts = torch.full((heads,), given["keep"])
        assert kept(method.kept(observed, counts)) == expected["kept"]


def test_random_attention_draws_by_seed_layer_head_and_length() -> None:
    states = torch.randn(2, 2, 40, 4)

    def drawn(layer: int = 0, tokens: int = 40, **options: Any) -> list[list[int]]:
        method = methods.create("random_attention", budget=9, window=3, **options)
        part = states[:, :, :tokens]
        first, second = method.select(part, part, part, layer, 2).tokens
        assert torch.equal(first, second)
        return kept(first[None])

    assert drawn() == drawn()
    assert all(row[-3:] == [37, 38, 39] and len(row) == 12 for row in drawn(seed=5))
    others = [drawn(seed=1), drawn(layer=1), drawn(tokens=39)]
    assert all(rows[0][:9] != drawn()[0][:9] for rows in others)
    assert drawn()[0] != drawn()[1]
    assert all(row[:2] == [0, 1] for row in drawn(sinks=2))


def test_chunkkv_golden(golden) -> None:
    for case in golden("methods_2026", "chunkkv"):
        scores, chunk = torch.tensor(case["inputs"]["scores"])[None], case["inputs"]["chunk"]
        near(chunk_means(scores.sum(dim=1), chunk)[0], case["expected"]["chunk_scores"])
        tokens = scores.shape[-1]
        count = math.ceil(tokens * (1 - case["inputs"]["ratio"]))
        states = torch.zeros(1, scores.shape[1], tokens, 2)
        observed = Observed(states, states, states, 1.0)
        method = methods.create("chunkkv", chunk=chunk)
        chosen = method.chosen(scores, torch.full((scores.shape[1],), count), observed)
        assert kept(chosen) == [case["expected"]["kept"]] * scores.shape[1]


def test_a_base_must_score_tokens() -> None:
    for base in ("h2o", "chunkkv", 3):
        with pytest.raises(UserError, match="gives tokens no score") as error:
            methods.create("chunkkv", base=base)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="unknown method 'snap'"):
        methods.create("chunkkv", base="snap")
    method = methods.create("chunkkv", base={"kind": "knorm", "window": 3})
    assert methods.from_dict(method.to_dict()) == method
    assert method.edges() == 3
    states = torch.zeros(1, 2, 20, 4)
    with pytest.raises(UserError, match=r"always keeps \(6\); raise the total or lower base"):
        replace(method, total=5).select(states, states, states)


def test_criticalkv_golden(golden) -> None:
    for case in golden("methods_2026", "critical"):
        given, expected = case["inputs"], case["expected"]
        scores, values = torch.tensor(given["scores"])[None], torch.tensor(given["values"])[None]
        projection = torch.tensor(given["wo"])
        near(output_norms(values, projection)[0], expected["norms"])
        counts = torch.full(scores.shape[1:2], given["keep"])
        assert kept(first_stage(scores, counts, given["first"])) == expected["stage1"]
        method = methods.create("criticalkv", first=given["first"], epsilon=given["epsilon"])
        observed = Observed(values, values, values, 1.0, output_projection=projection)
        assert kept(method.chosen(scores, counts, observed)) == expected["kept"]


def test_criticalkv_with_counts_of_adakv() -> None:
    states = torch.randn(1, 2, 40, 4, generator=torch.Generator().manual_seed(1))
    options = {"window": 4, "kernel": 3}
    base = methods.create("adakv", budget=9, **options)
    method = methods.create("criticalkv", budget=9, base={"name": "adakv", **options})
    projection = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2))
    chosen = method.select(states, states, states, output_projection=projection)
    alone = base.select(states, states, states)
    assert torch.equal(chosen.budgets, alone.budgets)
    assert not torch.equal(chosen.tokens, alone.tokens)
    with pytest.raises(UserError, match="needs output_projection"):
        method.select(states, states, states)
    with pytest.raises(UserError, match="does not take values"):
        method.select(states, states, states, output_projection=projection[:, :3])


def test_defensivekv_golden(golden) -> None:
    for case in golden("methods_2026", "defensive"):
        given, expected = case["inputs"], case["expected"]
        attention, norms = torch.tensor(given["attention"]), torch.tensor(given["norms"])
        heads, _, window, entries = attention.shape
        worst = largest_pooled(attention, given["kernel"]).amax(dim=1)
        near(worst.maximum(worst.mean(dim=-1, keepdim=True)), expected["worst"])
        scores, mean = defended(worst, norms), attention.mean(dim=(1, 2))
        near(scores, expected["scores"])
        method = methods.create("defensivekv", bias=given["bias"])
        bias = method.bias_of(mean[None], window)
        near(bias[0], expected["bias"])
        tokens = entries + window
        total = int(tokens * given["keep_ratio"] * heads)
        most = max(0, entries * total // (tokens * heads) - window)
        certain = top_mask(mean, certain_counts(mean[None], bias, most)[0])
        assert kept(certain[None]) == expected["stage1"]
        scores = scores.masked_fill(certain, math.inf).flatten()
        chosen = top_mask(scores, torch.tensor(total - heads * window))
        assert kept(chosen.view(1, heads, entries)) == expected["kept"]


def test_layer_defensivekv_golden(golden, monkeypatch) -> None:
    for case in golden("methods_2026", "global_top"):
        scores, expected = torch.tensor(case["inputs"]["scores"]), case["expected"]
        layers, heads, tokens = scores.shape
        states = torch.zeros(1, heads, tokens, 2)
        observed = [
            Observed(states[:, :, :0], states, states, 1.0, layer, layers)
            for layer in range(layers)
        ]
        method = methods.create("defensivekv", across_layers=True)
        monkeypatch.setattr(
            type(method), "scores", lambda _, one, __, own=scores: own[one.layer, None]
        )
        chosen = method._chosen(observed, expected["total"])
        assert [one.budgets[0].tolist() for one in chosen] == expected["counts"]
        assert not method.needs.missing_from(replace(method.needs, all_layers=False))


@pytest.mark.parametrize("across", [False, True])
def test_defensivekv_keeps_its_total_in_heads_of_any_length(across: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(2, 2, 2, 40, 4, generator=generator)
    projection = torch.randn(2, 4, 8, generator=generator)
    layers = [
        Observed(own[:, :, -4:], own, own, 0.5, layer, 2, output_projection=projection)
        for layer, own in enumerate(states)
    ]
    options: dict[str, Any] = {"window": 4, "kernel": 3, "across_layers": across}
    method = methods.create("defensivekv", budget=9, **options)
    both = method.select_padded(layers, None)
    totals = torch.stack([one.budgets.sum(dim=1) for one in both])
    assert (totals.sum(dim=0) == 52).all()
    assert across or (totals == 26).all()
    assert all(bool(one.tokens[..., -4:].all()) for one in both)
    # a sequence by itself, padded on the left
    valid = torch.arange(40) >= torch.tensor([[0], [7]])
    padded = method.select_padded(layers, valid)
    short = [
        replace(
            one, queries=one.queries[1:], keys=one.keys[1:, :, 7:], values=one.values[1:, :, 7:]
        )
        for one in layers
    ]
    for one, alone in zip(padded, method.select_padded(short, None), strict=True):
        assert torch.equal(one.tokens[1:, :, 7:], alone.tokens)
    assert all(
        bool(one.tokens.all()) for one in replace(method, budget=36).select_padded(layers, None)
    )


def moments_of(queries: Tensor, rotation: Rotation, chunk: int) -> QueryMoments:
    """Of queries before their rotation, added chunk by chunk."""
    found = QueryMoments.none_yet(queries)
    turned = rotation.rotate(queries, torch.arange(queries.shape[2]))
    for part in turned.split(chunk, dim=2):
        found.add(part, rotation)
    return found


def test_expected_attention_golden(golden) -> None:
    for case in golden("methods_2026", "expected_attention"):
        given, expected = case["inputs"], case["expected"]
        queries, keys, values = (
            torch.tensor(given[name])[None] for name in ("queries", "keys", "values")
        )
        dim = keys.shape[-1]
        rotation = Rotation(given["theta"] ** (-torch.arange(0, dim, 2).float() / dim))
        options = {name: given[name] for name in ("sinks", "future", "epsilon", "covariance")}
        method = methods.create(
            "expected_attention", budget=given["keep"], value_norm=given["value_norm"], **options
        )
        observed = Observed(
            queries[:, :, :0], keys, values, dim**-0.5, rotation=rotation,
            query_moments=moments_of(queries, rotation, chunk=3),
        )  # fmt: skip
        near(method.future_queries(observed)[0][0], expected["mean_query"])
        near(method.entry_scores(observed)[0, :, given["sinks"] :], expected["scores"])
        assert kept(method.select_observed(observed).tokens) == expected["kept"]


def test_moments_of_queries_leave_out_padding_and_the_first() -> None:
    queries = torch.randn(2, 3, 90, 6, generator=torch.Generator().manual_seed(0))
    rotation = Rotation(torch.tensor([1.0, 0.1]))  # a part of every query is not turned
    valid = torch.arange(90) >= torch.tensor([[0], [17]])
    places = valid.cumsum(dim=1) - 1
    turned = rotation.rotate(queries, places[:, None])
    found = QueryMoments.none_yet(queries)
    for start in range(0, 90, 40):
        part = slice(start, start + 40)
        found.add(turned[:, :, part], rotation, valid[:, part])
    mean, covariance = found.without_first(5)
    for b, first in enumerate((5, 22)):
        own = queries[b, :, first:]
        near(mean[b], own.mean(dim=1).tolist())
        for head in range(3):
            near(covariance[b, head], own[head].T.cov(correction=0).tolist())
    assert torch.equal(found.rows(slice(1, 2)).total, found.total[1:])


def test_expected_attention_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="budget 3 does not hold the 4 sinks"):
        methods.create("expected_attention", budget=3)
    states = torch.randn(1, 2, 9, 4)
    with pytest.raises(UserError, match="needs the moments of all queries"):
        methods.create("expected_attention", budget=5).select(states, states, states)
