"""CaM: who takes the values that leave, and how much of them."""

from __future__ import annotations

import copy

import pytest
import torch
from slot_rows import (
    DIM,
    GROUP,
    HEADS,
    SCALING,
    after_prefill,
    decode,
    entries,
    random_tensors,
    running_sums,
)

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.cam import added_values, merge_probability
from catekv.methods.formulas.draws import uniform_numbers


def expected_change(
    leaving_average: float, kept_average: list, denominator: str, m: int, value: list
) -> tuple[float, torch.Tensor]:
    chance = merge_probability(
        torch.tensor([leaving_average]),
        torch.tensor(kept_average),
        torch.tensor([0]),
        m,
        denominator,
    )
    parts = torch.tensor([value]).float() * chance[:, None] / m
    return float(chance), added_values(parts, torch.tensor([0]), len(kept_average), m)


def test_worked_example() -> None:
    chance, change = expected_change(0.3, [1.2, 0.9], "average", 2, [2, 4])
    assert chance == pytest.approx(0.285714, abs=1e-6)
    torch.testing.assert_close(change, torch.tensor([[0.285714, 0.571429]] * 2), rtol=0, atol=1e-5)
    assert expected_change(0.3, [1.2, 0.9], "max", 2, [2, 4])[0] == pytest.approx(0.25)


def test_golden(golden) -> None:
    for case in golden("baselines", "cam"):
        chance, change = expected_change(**case["inputs"])
        assert chance == pytest.approx(case["expected"]["probability"], abs=1e-5)
        for row in change[: case["inputs"]["m"]]:
            torch.testing.assert_close(row, torch.tensor(case["expected"]["expected_delta"]))


@pytest.mark.parametrize("rule", ["streaming_llm", "h2o"])
@pytest.mark.parametrize("denominator", ["max", "average"])
def test_selection_follows_the_definition(rule: str, denominator: str) -> None:
    tokens, following = 40, 5
    queries, keys, values = random_tensors(1, tokens)
    method = methods.create(
        "cam", budget=14, sinks=3, rule=rule, merge_tokens=following, denominator=denominator,
        expected=True,
    )  # fmt: skip
    found = method.select(queries, keys, values)
    sums = kernels.column_sums(queries, keys, DIM**-0.5).unflatten(1, (HEADS, GROUP)).mean(2)[0]
    base = {"budget": 14, "sinks": 3} if rule == "streaming_llm" else {"budget": 14}
    kept = methods.create(rule, **base).select(queries, keys, values).keep[0]
    for head in range(HEADS):
        stays = kept[head].nonzero().flatten().tolist()
        expected = {token: values[0, head, token].clone() for token in stays}
        for token in range(tokens):
            if token in stays:
                continue
            takers = [other for other in stays if other > token][:following]
            among = stays if denominator == "max" else takers
            received = sums[head, among]
            below = received.max() if denominator == "max" else received.mean()
            chance = (sums[head, token] / below).clamp(0, 1)
            for other in takers:
                expected[other] += chance * values[0, head, token] / following
        torch.testing.assert_close(
            found.values[0][head], torch.stack(list(expected.values())), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(found.keys[0][head], keys[0, head, stays])


@pytest.mark.parametrize("rule", ["streaming_llm", "h2o"])
@pytest.mark.parametrize("denominator", ["max", "average"])
def test_decoding_follows_the_definition(rule: str, denominator: str) -> None:
    prompt, following = 23, 4
    queries, keys, values = random_tensors(2, prompt + 15)
    method = methods.create(
        "cam", budget=12, sinks=3, rule=rule, merge_tokens=following, denominator=denominator,
        expected=True,
    )  # fmt: skip
    _, store = after_prefill(method, *(x[:, :, :prompt] for x in (queries, keys, values)))
    for token in range(prompt, prompt + 15):
        before = [entries(store, row) for row in range(2 * HEADS)]
        sums_before = [running_sums(store, row) for row in range(2 * HEADS)]
        part = slice(token, token + 1)
        decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
        for row in range(2 * HEADS):
            b, head = divmod(row, HEADS)
            after = entries(store, row)
            (left,) = set(before[row]) - set(after)
            scores = running_sums(store, row)
            # the running sum of the one that left: what it had and what this query gave it
            held = {**before[row], token: (keys[b, head, token], values[b, head, token], 0.0)}
            own = queries[b, head * GROUP : (head + 1) * GROUP, token]
            all_keys = torch.stack([key for key, _, _ in held.values()])
            weights = (own @ all_keys.T * SCALING).softmax(-1).mean(0)
            gained = dict(zip(held, weights, strict=True))
            left_score = sums_before[row][left] + gained[left]
            if rule == "streaming_llm":
                assert left == min(position for position in before[row] if position >= 3)
            takers = sorted(position for position in after if position > left)[:following]
            among = [scores[position] for position in (after if denominator == "max" else takers)]
            below = max(among) if denominator == "max" else sum(among) / len(among)
            chance = (left_score / below).clamp(0, 1)
            for position in after:
                change = chance * before[row][left][1] / following * (position in takers)
                torch.testing.assert_close(
                    after[position][1], held[position][1] + change, rtol=1e-5, atol=1e-5
                )
    assert store.lengths().tolist() == [[12, 12]] * 2


def test_values_are_drawn_whole_or_not_at_all() -> None:
    queries, keys, values = random_tensors(1, 60)
    sums = torch.full((1, HEADS * GROUP, 60), 1.0)
    sums[..., 2:50] = 0.5
    options = {"budget": 12, "sinks": 2, "merge_tokens": 10}
    outcomes = []
    for seed in range(2):
        method = methods.create("cam", seed=seed, **options)
        found = method.select(queries, keys, values, column_sums=sums)
        again = method.select(queries, keys, values, column_sums=sums)
        assert torch.equal(found.values[0][0], again.values[0][0])
        outcomes.append(found.values[0][0])
        change = (found.values[0][0] - values[0, 0, [0, 1, *range(50, 60)]]) * 10
        assert not bool(change[:2].any())
        # all recent tokens got the same sum of some of the 48 values
        torch.testing.assert_close(change[2:], change[2:3].expand(10, DIM), rtol=1e-4, atol=1e-4)
        draw = uniform_numbers(seed, 0, torch.tensor(0), torch.arange(2, 50)) < 0.5
        assert 10 < int(draw.sum()) < 38
        torch.testing.assert_close(change[2], values[0, 0, 2:50][draw].sum(0), rtol=1e-4, atol=1e-4)
    assert not torch.equal(*outcomes)


def test_draws_are_uniform_and_differ_by_all_that_they_depend_on() -> None:
    heads, positions = torch.arange(8)[:, None], torch.arange(4096)
    numbers = uniform_numbers(0, 0, heads, positions)
    assert numbers.shape == (8, 4096)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.01
    assert abs(float(numbers.var()) - 1 / 12) < 0.002
    correlation = torch.corrcoef(
        torch.cat([numbers, uniform_numbers(1, 0, heads, positions),
                   uniform_numbers(0, 1, heads, positions)])
    )  # fmt: skip
    assert float((correlation - torch.eye(24)).abs().max()) < 0.08


@pytest.mark.parametrize("rule", ["streaming_llm", "h2o"])
def test_padding_batches_and_copies(rule: str) -> None:
    queries, keys, values = random_tensors(2, 50)
    valid = torch.ones(2, 50, dtype=torch.bool)
    valid[1, :7] = False
    valid[1, 30:33] = False
    method = methods.create("cam", budget=9, sinks=2, rule=rule, seed=3)
    prompt = slice(0, 30)
    tensors = (queries, keys, values)
    _, both = after_prefill(method, *(x[:, :, prompt] for x in tensors), valid[:, prompt])
    single = []
    for row in range(2):
        own = valid[row].nonzero().flatten()
        first = own[own < 30]
        single.append(after_prefill(method, *(x[row : row + 1, :, first] for x in tensors))[1])
    for start, stop in ((30, 40), (40, 41), (41, 50)):
        part = slice(start, stop)
        twin = copy.deepcopy(both)
        outputs = [
            decode(store, *(x[:, :, part] for x in tensors), valid[:, part])
            for store in (both, twin)
        ]
        assert torch.equal(*outputs)
        for row in range(2):
            own = torch.arange(start, stop)[valid[row, part]]
            alone = decode(single[row], *(x[row : row + 1, :, own] for x in tensors))
            torch.testing.assert_close(
                outputs[0][row : row + 1, :, own - start], alone, rtol=1e-5, atol=1e-5
            )


def test_budgets_are_exact_and_nothing_changes_below_them() -> None:
    shape = ModelShape(3, HEADS * GROUP, HEADS, DIM)
    queries, keys, values = random_tensors(1, 30)
    for rule in ("streaming_llm", "h2o"):
        method = methods.create("cam", rule=rule).with_total(67, 30, shape)
        assert int(method.budget_table(30, shape).sum()) == 67
        for layer in range(3):
            found = method.select(queries, keys, values, layer=layer, num_layers=3)
            assert torch.equal(found.budgets[0], method.budget_table(30, shape)[layer])
        whole = methods.create("cam", rule=rule, budget=30).select(queries, keys, values)
        assert torch.equal(whole.values[0][0], values[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "snapkv"}, "use streaming_llm or h2o"),
        ({"denominator": "sum"}, "use max or average"),
        ({"merge_tokens": 0}, "at least 1"),
        ({"budget": 4, "sinks": 4}, "leaves no recent tokens"),
        ({"rule": "h2o", "budget": 4, "recent": 5}, "does not fit"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("cam", **options)
