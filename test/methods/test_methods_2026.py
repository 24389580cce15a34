"""The methods of 2024 to 2026 that score tokens, against their reference numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from catekv import CateKVModel, methods
from catekv.calibration.query_statistics import query_statistics
from catekv.errors import UserError
from catekv.methods import ModelShape, Needs, Observed, top_mask
from catekv.methods.chunkkv import chunk_means
from catekv.methods.criticalkv import best_products, first_stage
from catekv.methods.defensivekv import certain_counts, defended, largest_pooled
from catekv.methods.fast_kvzip.method import RULES, common_threshold
from catekv.methods.formulas.attention_match import Matched
from catekv.methods.formulas.output_norms import output_norms
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.formulas.repeat import largest_attention, value_norms
from catekv.methods.formulas.schedule import Clock, Schedule
from catekv.methods.held import Held
from catekv.methods.kvzap.gates import Gates, untrained_gates
from catekv.methods.r_kv import importance, newest_copies, redundancy
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


@pytest.mark.parametrize("alike", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("floats", [256 * 100, 1 << 22])
def test_r_kv_finds_newest_copies_block_by_block(floats: int, alike: float, monkeypatch) -> None:
    monkeypatch.setattr("catekv.methods.r_kv._FLOATS", floats)
    noise = torch.Generator().manual_seed(3)
    keys = torch.randn(600, 16, generator=noise) + alike * torch.randn(16, generator=noise)
    units = keys / torch.linalg.vector_norm(keys, dim=-1, keepdim=True)
    cosines = (units @ units.T).fill_diagonal_(0)
    copies, places = cosines > 0.6, torch.arange(600)
    last = torch.where(copies, places, -1).amax(dim=-1)
    assert torch.equal(newest_copies(units, 0.6), last)
    assert (alike > 1) == (int(last.min()) >= 0)
    for first_column in (False, True):
        spared = last.clamp(min=0) if first_column else last.where(last >= 0, places)
        counted = cosines.double().scatter(1, spared[:, None], 0.0)
        wanted = counted.mean(dim=0).softmax(dim=-1).float()
        torch.testing.assert_close(redundancy(keys, 0.6, first_column), wanted, rtol=3e-6, atol=0)


@pytest.mark.parametrize("floats", [1, 1 << 22])
def test_triattention_golden(golden, floats: int, monkeypatch) -> None:
    monkeypatch.setattr("catekv.methods.triattention._FLOATS", floats)
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


def test_mean_queries_of_a_model_score_its_keys(tmp_path: Path) -> None:
    model = CateKVModel(tiny_model("qwen3"))
    ids = torch.randint(2, 97, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    found = query_statistics(model, ids, chunk_size=23)
    moments = model.observe(ids, needs=Needs(query_moments=True)).observed(1).query_moments
    mean = found.parts[:2, 1].transpose(0, 1).flatten(1)
    near(mean, (moments.total / 60)[0].tolist())
    assert bool((found.parts[2] >= found.parts[:2].norm(dim=0)).all())
    found.save(tmp_path / "statistics.pt", {"tokens": 60})
    method = methods.create("triattention", statistics=tmp_path / "statistics.pt", budget=30)
    assert torch.equal(method.statistics.parts, found.parts)
    assert methods.from_dict(method.to_dict()) == method
    context = model.prefill(ids[:20], method=method)
    assert len(model.generate_ids([], context, 200, []).tokens) == 200
    other = CateKVModel(tiny_model("llama", num_hidden_layers=2))
    with pytest.raises(UserError, match="of 3 layers with 8 query heads for a model of 2 with 8"):
        other.prefill(ids, method=method)
    (tmp_path / "statistics.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"no query statistics .*make it with `catekv tri"):
        methods.create("triattention", statistics=tmp_path / "statistics.pt")


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
    assert all(row[:8] == list(range(8)) for row in drawn(sinks=8))
    with pytest.raises(UserError, match="9 tokens of a head outside the window do not hold the 9"):
        drawn(sinks=9)
    with pytest.raises(UserError, match=r"8 tokens of a head .* do not hold the 8 sinks"):
        drawn(sinks=8, budgets=[[9, 8], [9, 9]])
    assert all(len(row) == 6 for row in drawn(tokens=6, sinks=8))
    base = {"name": "random_attention", "sinks": 5}
    with pytest.raises(UserError, match=r"does not hold the 5 sinks .* and the newest 4 tokens"):
        methods.create("decoding", base=base, budget=8, buffer=4)


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


@pytest.mark.parametrize("lowest", [0.0, -0.5])
def test_criticalkv_computes_few_norms_and_keeps_the_same(lowest: float, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(6)
    scores = torch.rand(2, 3, 200, generator=generator) ** 4 + lowest
    scores[0, 0, 5] = math.inf
    values = torch.randn(2, 3, 200, 8, generator=generator)
    projection = torch.randn(6, 8, 32, generator=generator)
    counts = torch.tensor([[40, 40, 2], [200, 0, 40]])
    certain = first_stage(scores, counts, 0.5)
    computed = []

    def counted(values: Tensor, projection: Tensor) -> Tensor:
        computed.append(values.shape[:3].numel())
        return output_norms(values, projection)

    monkeypatch.setattr("catekv.methods.criticalkv.output_norms", counted)
    found = best_products(scores, values, projection, certain, counts)
    wanted = scores * output_norms(values, projection)
    chosen, right = (
        top_mask(products.masked_fill(certain, math.inf), counts) for products in (found, wanted)
    )
    assert torch.equal(chosen, right)
    assert sum(computed) < 500 if lowest == 0 else sum(computed) == 1200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("floats", [1, 64, 1 << 18])
def test_norms_are_the_same_in_blocks(floats: int, dtype: torch.dtype, monkeypatch) -> None:
    for module in ("output_norms", "repeat"):
        monkeypatch.setattr(f"catekv.methods.formulas.{module}.block_floats", lambda device: floats)
    monkeypatch.setattr("catekv.methods.formulas.output_norms._COLUMNS", min(floats, 512))
    noise = torch.Generator().manual_seed(2)
    values = torch.randn(2, 3, 50, 8, generator=noise).to(dtype)
    projection = torch.randn(6, 8, 40, generator=noise).to(dtype)
    weights = projection.double().unflatten(0, (3, 2))
    outputs = torch.einsum("bhtd,hgdn->bhgtn", values.double(), weights)
    rounded = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(
        output_norms(values, projection).double(), outputs.abs().sum(dim=-1).mean(dim=2),
        rtol=rounded, atol=0,
    )  # fmt: skip
    found = value_norms(values[1, 2], projection[4:])
    torch.testing.assert_close(found.double(), outputs[1, 2].norm(dim=-1), rtol=1e-5, atol=0)


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


def test_kvzip_scores_golden(golden) -> None:
    for case in golden("methods_2026", "kvzip_scores"):
        given = {name: torch.tensor(value) for name, value in case["inputs"].items()}
        queries, chunk, new = given["queries"], given["chunk_keys"], given["repeat_keys"]
        sinks = given["sink_keys"].view(-1, queries.shape[-1])
        norms = None
        if "plus" in given:
            norms = (
                value_norms(given["chunk_values"], given["wo"]),
                given["hidden"].norm(dim=-1),
            )
        keys, scored = torch.cat([sinks, chunk, new]), slice(len(sinks), len(sinks) + len(chunk))
        scaling = queries.shape[-1] ** -0.5
        found = largest_attention(queries, keys, scored, len(new), scaling, norms=norms)
        near(found, case["expected"]["scores"])
        # a repetition that is fed token by token
        parts = [
            largest_attention(
                queries[:, i : i + 1], keys[: len(keys) - len(new) + i + 1], scored, i + 1, scaling,
                norms=norms and (norms[0], norms[1][i : i + 1]),
            )
            for i in range(len(new))
        ]  # fmt: skip
        torch.testing.assert_close(torch.stack(parts).amax(dim=0), found)


def test_kvzip_keep_golden(golden) -> None:
    for case in golden("methods_2026", "kvzip_keep"):
        given, expected = case["inputs"], case["expected"]
        scores = torch.tensor(given["scores"])[None]
        scores[..., : given["sinks"]] = math.inf
        _, layers, heads, tokens = scores.shape
        total = math.floor(layers * heads * tokens * given["keep"] + 1e-9)
        method = methods.create("kvzip", sinks=0, total=total, strict=given["rule"] == "strict")
        keep = method.chosen(scores, method.counts(tokens, ModelShape(layers, heads, heads, 2)))
        assert [kept(layer[None]) for layer in keep[0]] == expected["kept"]
        assert int(keep.sum()) == expected["total"]


def test_kvzip_chooses_among_what_its_level_says_and_keeps_the_first_tokens() -> None:
    scores = torch.tensor([[[0.1, 0.9, 0.2, 0.3], [0.8, 0.7, 0.05, 0.6]]] * 2)[None]
    scores[0, 1] /= 2
    counts = torch.full((2, 2), 2)
    found = {
        level: methods.create("kvzip", level=level, sinks=0).chosen(scores, counts)[0]
        for level in ("model", "layer", "head")
    }
    assert [kept(layer[None]) for layer in found["model"]] == [[[1, 3], [0, 1, 3]], [[1], [0, 1]]]
    assert [kept(layer[None]) for layer in found["layer"]] == [[[1], [0, 1, 3]]] * 2
    assert [kept(layer[None]) for layer in found["head"]] == [[[1, 3], [0, 1]]] * 2
    scores[..., 0] = math.inf
    with pytest.raises(UserError, match="3 entries do not hold the 4 of the first tokens"):
        methods.create("kvzip", sinks=0).chosen(scores, torch.tensor([[1, 1], [1, 0]]))
    with pytest.raises(UserError, match="budget 3 does not hold the 4 sinks"):
        methods.create("kvzip", budget=3)
    states = torch.zeros(1, 2, 9, 4)
    with pytest.raises(UserError, match="needs the model to repeat its prompt"):
        methods.create("kvzip").select(states, states, states)


def test_kvzap_golden(golden, tmp_path) -> None:
    for case in golden("methods_2026", "kvzap"):
        given, expected = case["inputs"], case["expected"]
        numbers = {name: torch.tensor(value) for name, value in given.items()}
        network = [(numbers["w1"], numbers["b1"])]
        network += [(numbers["w2"], numbers["b2"])] if "w2" in given else []
        Gates((tuple(network),)).save(tmp_path / case["id"])
        method = methods.create(
            "kvzap", predictor=tmp_path / case["id"], threshold=given["threshold"],
            window=given["window"],
        )  # fmt: skip
        hidden = numbers["hidden"][None]
        states = torch.zeros(1, len(network[-1][1]), hidden.shape[1], 2)
        observed = Observed(states, states, states, 1.0, attention_inputs=hidden)
        near(method.entry_scores(observed)[0], expected["scores"])
        assert kept(method.select_observed(observed).tokens) == expected["kept"]
        with pytest.raises(UserError, match="are for 1 layers x 2 KV heads but the model has 3"):
            method.validate(ModelShape(3, 4, 2, 2))


def test_kvzap_keeps_a_floor_sinks_or_a_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, states = torch.randn(1, 40, 8, generator=generator), torch.zeros(1, 2, 40, 4)
    observed = Observed(states, states, states, 1.0, num_layers=2, attention_inputs=hidden)

    def counts(**options: Any) -> list[int]:
        method = methods.create("kvzap", untrained=True, window=3, **options)
        chosen = method.select_observed(observed)
        assert bool(chosen.tokens[..., -3:].all())
        assert bool(chosen.tokens[..., : options.get("sinks", 0)].all())
        return chosen.budgets[0].tolist()

    assert counts(threshold=99.0) == [3, 3]
    assert counts(threshold=99.0, sinks=2) == [5, 5]
    assert counts(threshold=99.0, floor=6) == [9, 9]
    assert counts(threshold=-99.0) == [40, 40]
    assert sum(counts(budget=10)) == 26
    assert sum(counts(budget=1, total=41)) == 21


def test_kvzap_refuses_what_is_no_gate(tmp_path) -> None:
    with pytest.raises(UserError, match="kvzap needs gates that were trained"):
        methods.create("kvzap")
    with pytest.raises(UserError, match="holds no KVzap gates"):
        methods.create("kvzap", predictor=tmp_path)
    with pytest.raises(UserError, match="keep and threshold both say how much"):
        methods.create("kvzap", untrained=True, keep=0.3, threshold=-3.0)
    states = torch.zeros(1, 2, 9, 4)
    with pytest.raises(UserError, match="needs what attention reads"):
        methods.create("kvzap", untrained=True).select(states, states, states)
    untrained_gates((4, 2), 3, seed=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "input_dim": 5}))
    with pytest.raises(UserError, match=r"layers.0 is \[2, 4\] instead of \[2, 5\]") as error:
        methods.create("kvzap", predictor=tmp_path)
    assert "\n" not in str(error.value)


def test_attention_matching_golden(golden) -> None:
    for case in golden("methods_2026", "attention_match"):
        given, expected = case["inputs"], case["expected"]
        queries, keys, values = (
            torch.tensor(given[name]) for name in ("queries", "keys", "values")
        )
        queries = queries * keys.shape[-1] ** -0.5
        everywhere = torch.full((len(queries),), len(keys))
        matched = Matched.of(queries, everywhere, keys, values, given["score"])
        near(matched.scores, expected["scores"], 1e-3)
        chosen = top_mask(matched.scores, torch.tensor(given["size"]))
        assert chosen.nonzero().flatten().tolist() == expected["kept"]
        bias, fitted = matched.fit(
            keys, torch.tensor(expected["kept"]), given["low"], given["high"], given["steps"]
        )
        near(bias, expected["beta"], 1e-3)
        near(fitted, expected["values"], 1e-3)
        found = (queries @ keys[chosen].T + bias).softmax(dim=-1) @ fitted
        right = (queries @ keys.T).softmax(dim=-1) @ values
        error = ((found - right).norm(dim=-1) / right.norm(dim=-1)).mean()
        assert float(error) == pytest.approx(expected["error"], rel=1e-3)


def test_greedy_attention_matching_golden(golden) -> None:
    for case in golden("methods_2026", "attention_match_omp"):
        given, expected = case["inputs"], case["expected"]
        queries, keys, values = (
            torch.tensor(given[name]) for name in ("queries", "keys", "values")
        )
        queries = queries * keys.shape[-1] ** -0.5
        everywhere = torch.full((len(queries),), len(keys))
        matched = Matched.of(queries, everywhere, keys, values, "rms")
        low = methods.create("attention_matching", choice="greedy").fitting[0]
        order = matched.greedily(keys, given["size"], low, given["high"])
        assert order.tolist() == expected["order"]
        bias, fitted = matched.fit(keys, order, low, given["high"], 0)
        near(bias, expected["beta"], 1e-3)
        near(fitted, expected["values"], 1e-3)
        found = (queries @ keys[order].T + bias).softmax(dim=-1) @ fitted
        right = (queries @ keys.T).softmax(dim=-1) @ values
        error = ((found - right).norm(dim=-1) / right.norm(dim=-1)).mean()
        assert float(error) == pytest.approx(expected["error"], rel=1e-3)


@pytest.mark.parametrize("count", [0, 1, 15, 16])
def test_greedy_choice_replaces_what_comes_out_weak_and_keeps_its_count(count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(16, 4, generator=generator)
    keys[8:] = keys[:8]  # every key twice: one of the two is worth nothing beside the other
    queries = torch.randn(40, 4, generator=generator)
    matched = Matched.of(queries, torch.full((40,), 16), keys, keys, "rms")
    order = matched.greedily(keys, count, math.log(1e-12), 7.0)
    assert len(set(order.tolist())) == count
    if count == 1:
        assert order.tolist() == [int((matched.mass @ (queries @ keys.T - matched.shift[:, None])
                                       .exp()).argmax())]  # fmt: skip


def test_greedy_choice_meets_the_mass_better() -> None:
    generator = torch.Generator().manual_seed(5)
    keys, values = torch.randn(2, 1, 1, 60, 8, generator=generator)
    queries = 2 * torch.randn(1, 2, 60, 8, generator=generator)
    errors = {}
    for choice in ("attention", "greedy"):
        options: dict[str, Any] = {"budget": 8, "window": 50, "sinks": 1, "recent": 2}
        method = methods.create("attention_matching", choice=choice, **options)
        row = method.select(queries, keys, values).merged[0][0]
        assert len(row.keys) == 11
        sample = queries[0, :, -3:].flatten(0, 1) * 8**-0.5
        mass = (sample @ row.keys.T + row.bias).logsumexp(-1)
        errors[choice] = float((mass - (sample @ keys[0, 0].T).logsumexp(-1)).abs().mean())
    assert errors["greedy"] < errors["attention"]


def test_ada_by_ratio_golden(golden) -> None:
    for case in golden("methods_2026", "ada_ratio"):
        given, expected = case["inputs"], case["expected"]
        scores = torch.tensor(given["scores"])[None]
        heads, tokens = scores.shape[1:]
        ratio = given["ratio"]
        kept_each = max(1, math.floor(tokens * (1 - ratio) + 1e-9)) if ratio < 1 else 0
        method = methods.create("expected_attention", sinks=0, floor=given["safeguard"])
        counts = method.split(scores, torch.full((heads,), kept_each))
        assert counts[0].tolist() == expected["counts"]
        assert kept(top_mask(scores, counts)) == expected["kept"]


def test_competing_heads_keep_a_floor_of_one() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6], [0.3, 0.2, 0.1, 0.05]]])
    both = torch.tensor([2, 2])

    def counts(floor: float, base: Tensor = both) -> list[int]:
        method = methods.create("expected_attention", sinks=0, floor=floor)
        return method.split(scores, base)[0].tolist()

    assert counts(0.5) == [3, 1]
    assert counts(0.2) == [3, 1]  # a fifth of two is no token, but one is kept
    assert counts(0.0) == [4, 0]
    assert counts(1.0) == [2, 2]
    assert counts(0.2, torch.tensor([2, 0])) == [2, 0]
    assert counts(0.5, torch.tensor([9, 9])) == [4, 4]


def test_expected_attention_with_competing_heads_keeps_its_total() -> None:
    generator = torch.Generator().manual_seed(4)
    keys, values, queries = torch.randn(3, 2, 2, 30, 4, generator=generator)
    keys[:, 1] *= 3
    rotation = Rotation(torch.tensor([1.0, 0.1]))
    observed = Observed(
        queries[:, :, :0].repeat(1, 2, 1, 1), keys, values, 0.5, rotation=rotation,
        query_moments=moments_of(queries.repeat(1, 2, 1, 1), rotation, chunk=7),
    )  # fmt: skip
    method = methods.create("expected_attention", budget=10, sinks=2, floor=0.2)
    chosen = method.select_observed(observed)
    assert chosen.budgets.sum(dim=1).tolist() == [20, 20]
    assert chosen.budgets.unique().numel() > 1
    assert bool(chosen.tokens[..., :2].all())
    with pytest.raises(UserError, match="decides its budgets for every prompt"):
        method.budget_table(30, ModelShape(1, 4, 2, 4))
    with pytest.raises(UserError, match="leave floor out or use one process"):
        method.for_heads(slice(0, 1))


def test_fast_kvzip_gate_golden(golden, tmp_path) -> None:
    for case in golden("methods_2026", "fastkvzip_gate"):
        given = {name: torch.tensor(value) for name, value in case["inputs"].items()}
        layer = {
            "q_proj.weight": given["wq"], "q_proj.bias": given["bq"],
            "k_proj.weight": given["wk"], "q_norm.weight": given["q_norm"],
            "k_norm.weight": given["k_norm"], "k_base": given["k_base"][:, None],
            "b": given["b"][:, None], "loss": np.float64(0.5),
        }  # fmt: skip
        path = tmp_path / f"{case['id']}.pt"
        torch.save({"module": [layer], "losses": np.zeros(3)}, path)
        method = methods.create("fast_kvzip", predictor=path, sinks=0, window=0)
        hidden, heads = given["hidden"][None], len(given["b"])
        states = torch.zeros(1, heads, hidden.shape[1], 2)
        observed = Observed(states, states, states, 1.0, attention_inputs=hidden)
        near(method.layer_scores(observed)[0], case["expected"]["scores"])
        with pytest.raises(UserError, match=f"for 1 layers x {heads} KV heads but the model has 3"):
            method.validate(ModelShape(3, 4, 2, 2))
        with pytest.raises(UserError, match="but the model has 1 layers x 2 KV heads x 3 inputs"):
            method.layer_scores(replace(observed, attention_inputs=hidden[..., :3]))


def test_fast_kvzip_threshold_golden(golden) -> None:
    for case in golden("methods_2026", "gate_budget"):
        given, expected = case["inputs"], case["expected"]
        rows = [torch.tensor(row) for row in given["scores"]]
        window, flat = given["window"], []
        for row in rows:
            flat.append(row.clone())
            flat[-1][max(0, len(row) - window) :] = math.inf
        scores = torch.cat(flat)
        places = torch.tensor(given["budget"] * len(rows))
        threshold = common_threshold(scores, places)
        assert float(threshold) == pytest.approx(expected["threshold"])
        chosen = (scores >= threshold).split([len(row) for row in rows])
        assert [row.nonzero().flatten().tolist() for row in chosen] == expected["kept"]


@pytest.mark.parametrize("level", ["model", "layer", "head"])
@pytest.mark.parametrize("rule", ["exact", "threshold"])
def test_fast_kvzip_keeps_its_budget_and_the_ends(level: str, rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.zeros(2, 2, 60, 4)
    layers = [
        Observed(
            states.repeat(1, 2, 1, 1)[:, :, :0], states, states, 1.0, layer, 2,
            attention_inputs=torch.randn(2, 60, 8, generator=generator),
        )
        for layer in range(2)
    ]  # fmt: skip
    method = methods.create(
        "fast_kvzip", untrained=True, budget=20, sinks=3, level=level, rule=rule
    )
    found = torch.stack([one.tokens for one in method.select_layers(layers)], dim=1)
    assert (found.sum(dim=(1, 2, 3)) == 80).all()
    assert bool(found[..., :3].all())
    assert bool(found[..., -1:].all())
    if level == "layer":
        assert (found.sum(dim=(2, 3)) == 40).all()
    if level == "head":
        assert (found.sum(dim=3) == 20).all()
    whole = replace(method, budget=60).select_layers(layers)
    assert all(bool(one.tokens.all()) for one in whole)


def test_fast_kvzip_counts_ties_as_its_rule_says_and_refuses_what_it_cannot_do(tmp_path) -> None:
    scores, places = torch.tensor([[0.3, 0.5, 0.5, 0.5, 0.1]]), torch.tensor([2])
    exact, threshold = (
        methods.create("fast_kvzip", untrained=True, rule=rule, budget=9) for rule in RULES
    )
    assert exact.best(scores, places)[0].tolist() == [False, True, True, False, False]
    assert threshold.best(scores, places)[0].tolist() == [False, True, True, True, False]
    windows = [exact.window_of(tokens) for tokens in (10, 149, 150, 31999, 32000, 131072)]
    assert windows == [1, 2, 3, 639, 4096, 4096]
    with pytest.raises(UserError, match="budget 9 does not hold the 12 first and last"):
        replace(exact, window=8)
    states = torch.zeros(1, 2, 900, 4)
    observed = Observed(states, states, states, 1.0, attention_inputs=torch.randn(1, 900, 8))
    with pytest.raises(UserError, match="18 entries do not hold the 44 of the first and last"):
        exact.select_observed(observed)
    with pytest.raises(UserError, match="needs what attention reads"):
        exact.select_observed(replace(observed, attention_inputs=None))
    with pytest.raises(UserError, match=r"needs gates .*give their \.pt file"):
        methods.create("fast_kvzip")
    torch.save({"module": [{"q_proj.weight": torch.zeros(2, 2)}]}, tmp_path / "gates.pt")
    for path, said in ((tmp_path / "gates.pt", "KeyError"), (tmp_path / "no.pt", "no.pt")):
        with pytest.raises(UserError, match=said) as error:
            methods.create("fast_kvzip", predictor=path)
        assert "\n" not in str(error.value)
