"""KeepKV: votes, moving averages, and merges that leave the output of the moment unchanged."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from slot_rows import DIM, GROUP, HEADS, SCALING, after_prefill, decode, entries, random_tensors

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.kernels.packing import pack_merged
from catekv.methods import Merged, ModelShape
from catekv.methods.formulas.vote_merge import (
    corrected_average,
    updated_average,
    window_average,
    zip_factor,
    zip_merge,
)


def attend_with_votes(query: list, keys: list, values: list, votes: list) -> torch.Tensor:
    bias = torch.tensor(votes).float().log()
    keys, values = torch.tensor(keys).float(), torch.tensor(values).float()
    prefix = pack_merged([[Merged(keys, values, bias)]])
    asked = torch.tensor(query).float().view(1, 1, 1, -1)
    nothing = torch.zeros(1, 1, 0, keys.shape[1])
    return kernels.ragged_decode(asked, prefix, nothing, nothing, keys.shape[1] ** -0.5).flatten()


def test_worked_example_of_the_votes() -> None:
    output = attend_with_votes(
        [1, 0.5],
        [[2, 0], [1.5, 0.5], [0, 2], [0.5, 1.5], [1, 1]],
        [[1, 0], [0, 1], [2, 2], [-1, 1], [0.5, 0.5]],
        [2, 1, 1, 3, 1],
    )
    torch.testing.assert_close(output, torch.tensor([0.271107, 0.679565]), rtol=0, atol=1e-5)


def test_golden_votes(golden) -> None:
    for case in golden("baselines", "keepkv_attention"):
        output = attend_with_votes(**case["inputs"])
        torch.testing.assert_close(output, torch.tensor(case["expected"]["output"]))


def averages(scores: list, alpha: float) -> list[torch.Tensor]:
    log_average = torch.full((len(scores[0]),), -torch.inf)
    found = []
    for step, row in enumerate(scores):
        log_average = updated_average(log_average, torch.tensor(row).float().log(), alpha)
        found.append(corrected_average(log_average, torch.tensor(step + 1), alpha).exp())
    return found


def test_worked_example_of_the_average() -> None:
    found = averages([[1.0, 2.0], [3.0, 2.0]], 0.9)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found[1], torch.tensor([2.052632, 2.0]), rtol=0, atol=1e-5)


def test_golden_average(golden) -> None:
    for case in golden("baselines", "keepkv_ema"):
        found = averages(case["inputs"]["scores"], case["inputs"]["alpha"])
        for row, expected in zip(found, case["expected"]["corrected"], strict=True):
            torch.testing.assert_close(row, torch.tensor(expected))


def test_the_average_over_a_window_is_the_one_step_by_step() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 5, DIM, generator=generator)
    keys = torch.randn(9, DIM, generator=generator)
    log_average, steps = window_average(queries, keys, torch.arange(9), 9, 0.8)
    assert steps.tolist() == [5, 5, 5, 5, 5, 4, 3, 2, 1]
    for key in range(9):
        expected = torch.tensor(-torch.inf)
        for asked in range(5):
            if 4 + asked >= key:
                score = (queries[:, asked] @ keys[key]).exp().mean().log()
                expected = updated_average(expected, score, 0.8)
        torch.testing.assert_close(log_average[key], expected)


def merged_pair(query, k_e, k_c, v_e, v_c, p_e, p_c) -> tuple:
    query = torch.tensor(query).float()
    scale = len(query) ** -0.5

    def entry(key: list, value: list, votes: int) -> tuple:
        key = torch.tensor([key]).float()
        return key, torch.tensor([value]).float(), torch.tensor([votes]).log(), key @ query * scale

    done = zip_merge(
        entry(k_c, v_c, p_c), entry(k_e, v_e, p_e), torch.tensor([0]), torch.tensor([True])
    )
    votes = done.log_votes.exp()
    mass = float(votes * (done.keys @ query * scale).exp())
    return done.keys[0], done.values[0], float(votes), mass


def test_worked_example_of_the_merge() -> None:
    key, value, votes, mass = merged_pair([1, 0.5], [1.5, 0.5], [2, 0], [0, 1], [1, 0], 1, 2)
    torch.testing.assert_close(key, torch.tensor([1.847839, 0.147274]), rtol=0, atol=1e-5)
    torch.testing.assert_close(value, torch.tensor([0.70473, 0.29527]), rtol=0, atol=1e-5)
    assert votes == pytest.approx(3)
    assert mass == pytest.approx(11.673268, abs=1e-4)


def test_golden_merge(golden) -> None:
    for case in golden("simcalkv", "keepkv_zip"):
        key, value, votes, mass = merged_pair(**case["inputs"])
        expected = case["expected"]
        torch.testing.assert_close(key, torch.tensor(expected["key"]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, torch.tensor(expected["value"]), rtol=1e-5, atol=1e-5)
        assert votes == pytest.approx(expected["votes"])
        assert mass == pytest.approx(expected["mass"], rel=1e-5)


def test_logits_around_zero_fall_back_to_the_mean_key() -> None:
    # the mean log-score is above zero and that of the mean score below: no factor makes them equal
    key, _, _, _ = merged_pair([1.0], [-1.0], [1.0], [0], [1], 3, 1)
    own, left = math.exp(1), 3 * math.exp(-1)
    assert float(key) == pytest.approx((own - left) / (own + left), abs=1e-5)
    zero = torch.tensor([0.0])
    assert zip_factor(torch.tensor([0.5]), zero, torch.tensor([1e-9])).tolist() == [1.0]
    assert zip_factor(torch.tensor([0.5]), zero, torch.tensor([-0.3])).tolist() == [1.0]
    assert zip_factor(zero, zero, zero).tolist() == [1.0]
    key, value, votes, _ = merged_pair([0.0, 0.0], [2, 0], [0, 2], [1, 0], [0, 1], 1, 3)
    torch.testing.assert_close(key, torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(value, torch.tensor([0.25, 0.75]))
    assert votes == pytest.approx(4)


@pytest.mark.parametrize("many", [1, 2])
def test_merging_equal_entries_does_not_change_any_output(many: int) -> None:
    generator = torch.Generator().manual_seed(many)
    keys, values = torch.randn(2, 6, DIM, generator=generator)
    scores = torch.randn(6, generator=generator)
    one_vote = torch.zeros(6)
    left = torch.arange(6).repeat(many)
    done = zip_merge(
        (keys, values, one_vote, scores),
        (keys[left], values[left], one_vote[left], scores[left]),
        left,
        torch.ones(6 * many, dtype=torch.bool),
    )
    torch.testing.assert_close(done.keys, keys)
    query = torch.randn(DIM, generator=generator)
    merged = (done.keys @ query + done.log_votes).softmax(0) @ done.values
    repeated = keys.repeat(many + 1, 1) @ query
    torch.testing.assert_close(merged, repeated.softmax(0) @ values.repeat(many + 1, 1))


def test_the_output_of_the_moment_is_unchanged_by_many_merges() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 30, DIM, generator=generator)
    keys += 2.0  # logits well away from 0
    query = torch.rand(DIM, generator=generator)
    scores, one_vote = keys @ query, torch.zeros(30)
    target = torch.randint(0, 10, (20,), generator=generator)
    done = zip_merge(
        (keys[:10], values[:10], one_vote[:10], scores[:10]),
        (keys[10:], values[10:], one_vote[10:], scores[10:]),
        target,
        torch.ones(20, dtype=torch.bool),
    )
    merged = (done.keys @ query + done.log_votes).softmax(0) @ done.values
    torch.testing.assert_close(merged, scores.softmax(0) @ values, rtol=1e-4, atol=1e-5)


def similar_tensors(batch: int, tokens: int) -> tuple:
    """Random tensors whose keys are near one of three directions, so that most merge."""
    queries, keys, values = random_tensors(batch, tokens)
    generator = torch.Generator().manual_seed(1)
    directions = 2 * torch.randn(3, DIM, generator=generator)
    kind = torch.randint(0, 3, keys.shape[:3], generator=generator)
    return queries, 0.3 * keys + directions[kind], values


def test_votes_count_all_tokens_if_all_are_merged() -> None:
    queries, keys, values = similar_tensors(1, 40)
    method = methods.create("keepkv", budget=12, threshold=-1.0, window=4)
    found = method.select(queries, keys, values)
    assert found.budgets.tolist() == [[12, 12]]
    for head in range(HEADS):
        assert float(found.bias[0][head].exp().sum()) == pytest.approx(40, abs=1e-3)
    strict = methods.create("keepkv", budget=12, threshold=1.0, window=4)
    kept = methods.create("h2o", budget=12).select(queries, keys, values).keep
    found = strict.select(queries, keys, values)
    for head in range(HEADS):
        assert torch.equal(found.keys[0][head], keys[0, head, kept[0, head]])
        assert not bool(found.bias[0][head].any())


def test_decoding_follows_the_definition() -> None:
    prompt, budget, recent, alpha, threshold = 20, 9, 3, 0.7, 0.8
    queries, keys, values = similar_tensors(2, prompt + 25)
    options = {"alpha": alpha, "threshold": threshold, "window": 5}
    method = methods.create("keepkv", budget=budget, recent=recent, **options)
    tensors = (queries, keys, values)
    _, store = after_prefill(method, *(x[:, :, :prompt] for x in tensors))
    merges = drops = 0
    model: list[dict] = []
    for row in range(2 * HEADS):
        known = store.entries
        model.append({})
        for slot, position in enumerate(known.positions[row].tolist()):
            if position >= 0:
                key, value, bias = entries(store, row)[position]
                model[row][position] = {
                    "key": key, "value": value, "votes": math.exp(bias),
                    "sum": float(known.scores[row, slot]),
                    "average": float(known.averages[row, slot].exp()),
                    "steps": int(known.steps[row, slot]),
                }  # fmt: skip
    for token in range(prompt, prompt + 25):
        part = slice(token, token + 1)
        decode(store, *(x[:, :, part] for x in tensors))
        for row, held in enumerate(model):
            b, head = divmod(row, HEADS)
            own = queries[b, head * GROUP : (head + 1) * GROUP, token] * SCALING
            held[token] = {
                "key": keys[b, head, token], "value": values[b, head, token],
                "votes": 1.0, "sum": 0.0, "average": 0.0, "steps": 0,
            }  # fmt: skip
            logits = torch.stack([own @ one["key"] for one in held.values()], dim=1)
            votes = torch.tensor([one["votes"] for one in held.values()])
            weights = (logits + votes.log()).softmax(-1).mean(0).tolist()
            for one, weight, score in zip(
                held.values(), weights, logits.exp().mean(0).tolist(), strict=True
            ):
                one["sum"] += weight
                one["average"] = alpha * one["average"] + (1 - alpha) * score
                one["steps"] += 1
            old = [position for position in held if position <= token - recent]
            left = held.pop(min(old, key=lambda position: (held[position]["sum"], position)))
            cosines = {
                position: float(torch.cosine_similarity(left["key"], one["key"], dim=0))
                for position, one in held.items()
            }
            target = max(cosines, key=lambda position: cosines[position])
            if cosines[target] <= threshold:
                drops += 1
                continue
            merges += 1
            into = held[target]
            s_e, s_c = (one["average"] / (1 - alpha ** one["steps"]) for one in (left, into))
            w_e, w_c = left["votes"] * s_e, into["votes"] * s_c
            total, count = w_e + w_c, left["votes"] + into["votes"]
            below = w_e * math.log(s_e) + w_c * math.log(s_c)
            wanted = math.log(total / count)
            factor = wanted * total / below if below * wanted > 0 else 1.0
            into["key"] = (w_e * left["key"] + w_c * into["key"]) / total * factor
            into["value"] = (w_e * left["value"] + w_c * into["value"]) / total
            into["votes"] = count
            into["average"] = total / count * (1 - alpha ** into["steps"])
        for row, held in enumerate(model):
            found = entries(store, row)
            assert sorted(found) == sorted(held)
            for position, (key, value, bias) in found.items():
                torch.testing.assert_close(key, held[position]["key"], rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(value, held[position]["value"], rtol=1e-3, atol=1e-3)
                assert math.exp(bias) == pytest.approx(held[position]["votes"], rel=1e-4)
    assert merges > 20
    assert drops > 0


def test_padding_batches_copies_and_rearranged_rows() -> None:
    queries, keys, values = similar_tensors(2, 50)
    tensors = (queries, keys, values)
    valid = torch.ones(2, 50, dtype=torch.bool)
    valid[1, :7] = False
    valid[1, 30:33] = False
    method = methods.create("keepkv", budget=9, recent=3, window=4)
    _, both = after_prefill(method, *(x[:, :, :30] for x in tensors), valid[:, :30])
    single = []
    for row in range(2):
        own = valid[row].nonzero().flatten()
        first = own[own < 30]
        single.append(after_prefill(method, *(x[row : row + 1, :, first] for x in tensors))[1])
    swapped = both.select_rows([1, 0])
    for start, stop in ((30, 40), (40, 41), (41, 50)):
        part = slice(start, stop)
        new = [x[:, :, part] for x in tensors]
        twin = copy.deepcopy(both)
        output = decode(both, *new, valid[:, part])
        assert torch.equal(output, decode(twin, *new, valid[:, part]))
        other = decode(swapped, *(x[[1, 0]] for x in new), valid[[1, 0], part])
        torch.testing.assert_close(output, other[[1, 0]], rtol=1e-5, atol=1e-5)
        assert not bool(output.isnan().any())
        for row in range(2):
            own = torch.arange(start, stop)[valid[row, part]]
            alone = decode(single[row], *(x[row : row + 1, :, own] for x in tensors))
            torch.testing.assert_close(
                output[row : row + 1, :, own - start], alone, rtol=1e-4, atol=1e-4
            )


def test_budgets_are_exact_and_an_infinite_one_changes_nothing() -> None:
    queries, keys, values = random_tensors(1, 30)
    shape = ModelShape(3, HEADS * GROUP, HEADS, DIM)
    method = methods.create("keepkv").with_total(67, 30, shape)
    assert int(method.budget_table(30, shape).sum()) == 67
    for layer in range(3):
        found = method.select(queries, keys, values, layer=layer, num_layers=3)
        assert torch.equal(found.budgets[0], method.budget_table(30, shape)[layer])
    tensors = (queries, keys, values)
    _, store = after_prefill(methods.create("keepkv", budget=50), *(x[:, :, :20] for x in tensors))
    for token in range(20, 30):
        found = decode(store, *(x[:, :, token : token + 1] for x in tensors))
        expected = torch.nn.functional.scaled_dot_product_attention(
            queries[:, :, token : token + 1], keys[:, :, : token + 1], values[:, :, : token + 1],
            scale=SCALING, enable_gqa=True,
        )  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "outside"),
        ({"threshold": "high"}, "threshold 'high' is not a number"),
        ({"alpha": 1.0}, r"alpha 1.0 is outside \(0, 1\)"),
        ({"window": 0}, "at least 1"),
        ({"budget": 4, "recent": 5}, "does not fit"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("keepkv", **options)
