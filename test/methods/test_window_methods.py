"""SnapKV, PyramidKV, AdaKV, HeadKV and CoKV: one selection, five ways to split the tokens."""

from __future__ import annotations

import pytest
import torch
from method_tensors import (
    SHAPE,
    check_method,
    check_static_table,
    kept,
    select,
    tensors,
)

from catekv import methods
from catekv.errors import UserError
from catekv.kernels.window_scores import window_attention
from catekv.methods import ModelShape
from catekv.methods.formulas.scoring import window_token_scores

SCORES = [[0.5, 0.1], [0.2, 0.9], [0.0, 0.3]]
#: Queries of two heads over eight keys, with the scores and tokens of the CoKV specification.
QUERIES = torch.tensor([[[1.0, 0], [1, 1]], [[0, 1], [0, 2]]])[None]
KEYS = torch.tensor([[2.0, 0], [0, 0], [0, 2], [0, 0], [1, 1], [0, 0], [0, 1], [1, 0]])[None, None]
STATIC = [
    ("snapkv", {"budget": 10, "window": 4, "order": "pool_then_mean"}),
    ("pyramidkv", {"budget": 20, "window": 4, "beta": 4}),
    ("pyramidkv", {"budget": 40, "window": 4, "short_prompt": "clamped"}),
    ("headkv", {"budget": 20, "window": 4, "scores": SCORES}),
    ("cokv", {"budget": 20, "window": 4, "scores": SCORES}),
    ("cokv", {"budget": 20, "window": 4, "scores": SCORES, "redistribute": True, "alpha": 4}),
]
MOVING = [
    ("adakv", {"budget": 20, "window": 4}),
    ("adakv", {"budget": 20, "window": 4, "budgets": "pyramid", "exact": True}),
    ("adakv", {"budget": 20, "window": 4, "safeguard": "reserved", "normalise": True}),
]


@pytest.mark.parametrize(("name", "options"), STATIC + MOVING)
def test_padding_short_prompts_and_plain_values(name: str, options: dict) -> None:
    check_method(methods.create(name, **options))


@pytest.mark.parametrize(("name", "options"), STATIC)
def test_budget_tables_foretell_what_is_kept(name: str, options: dict) -> None:
    check_static_table(methods.create(name, **options))


@pytest.mark.parametrize(("name", "options"), STATIC + MOVING)
def test_the_window_and_each_heads_best_tokens_are_kept(name: str, options: dict) -> None:
    method = methods.create(name, **options)
    queries, keys, values = tensors(1, 97)
    found = method.select(queries, keys, values, layer=1, num_layers=3)
    scores = window_token_scores(
        queries[:, :, -4:], keys, 8**-0.5, method.kernel, method.pooling, method.order
    )
    for head in range(2):
        own = int(found.budgets[0, head]) - 4
        best = scores[0, head].sort(descending=True, stable=True).indices[:own].sort().values
        assert kept(found, 0, head) == [*best.tolist(), 93, 94, 95, 96]


@pytest.mark.parametrize(("name", "options"), STATIC + MOVING)
def test_a_budget_of_the_whole_prompt_drops_nothing(name: str, options: dict) -> None:
    if name == "cokv":
        options = {**options, "alpha": 1, "redistribute": True}
    found = select(methods.create(name, **{**options, "budget": 93}), 1, 97)
    assert found.keep is not None
    if name == "headkv":  # its floor rounding and its scores leave some heads short
        found = select(methods.create(name, preset="recommended", scores=SCORES, budget=97), 1, 97)
        assert found.keep is not None
    assert bool(found.keep.all())


def test_ties_go_to_the_lower_position() -> None:
    queries = torch.zeros(1, 4, 4, 8)
    _, keys, values = tensors(1, 60)
    for name, options in (("snapkv", {}), ("adakv", {"exact": True})):
        method = methods.create(name, budget=5, window=4, kernel=1, **options)
        found = method.select(queries, keys, values)
        # all scores are equal: AdaKV's competition goes to the first head, but for the safeguard
        assert kept(found, 0, 0)[:5] == [0, 1, 2, 3, 4]
        assert int(found.budgets.sum()) == 2 * (5 + 4)


def test_worked_example_of_the_two_orders() -> None:
    plain = window_token_scores(QUERIES, KEYS, 2**-0.5, 1)
    expected = torch.tensor([0.17415, 0.064165, 0.300266, 0.064165, 0.174301, 0.064165])
    torch.testing.assert_close(plain[0, 0], expected, atol=1e-5, rtol=0)
    pooled = window_token_scores(QUERIES, KEYS, 2**-0.5, 3)
    expected = torch.tensor([0.17415, 0.300266, 0.300266, 0.300266, 0.174301, 0.174301])
    torch.testing.assert_close(pooled[0, 0], expected, atol=1e-5, rtol=0)
    first = window_token_scores(QUERIES, KEYS, 2**-0.5, 3, "max", "pool_then_mean")
    expected = torch.tensor([0.17415, 0.370123, 0.300266, 0.323335, 0.174301, 0.174301])
    torch.testing.assert_close(first[0, 0], expected, atol=1e-5, rtol=0)
    for order in ("mean_then_pool", "pool_then_mean"):
        method = methods.create("snapkv", budget=3, window=2, kernel=3, order=order)
        assert kept(method.select(QUERIES, KEYS, KEYS), 0, 0) == [1, 2, 3, 6, 7]


def test_snap_scores_golden(golden) -> None:
    for case in golden("cokv", "snap_scores"):
        given, expected = case["inputs"], case["expected"]
        queries = torch.tensor(given["q_window"], dtype=torch.float32)[None]
        keys = torch.tensor(given["keys"], dtype=torch.float32)[None, None]
        scaling = keys.shape[-1] ** -0.5
        mean = window_token_scores(queries, keys, scaling, 1)[0, 0]
        torch.testing.assert_close(mean, torch.tensor(expected["mean_attention"]))
        pooled = window_token_scores(
            queries, keys, scaling, given["kernel"], "max", given["order"]
        )[0, 0]
        torch.testing.assert_close(pooled, torch.tensor(expected["pooled"]))
        options = {"kernel": given["kernel"], "order": given["order"], "window": 2}
        method = methods.create("snapkv", budget=given["count"], **options)
        found = kept(method.select(queries, keys, keys), 0, 0)
        assert found == [*expected["top"], 6, 7]


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_pooling_before_the_mean_is_what_it_says(pooling: str) -> None:
    queries, keys, _ = tensors(1, 40)
    window = queries[:, :, -5:]
    found = window_token_scores(window, keys, 0.3, 3, pooling, "pool_then_mean")
    rows = []
    for head in range(4):
        one = keys[:, head // 2 : head // 2 + 1]
        _, attention = next(window_attention(window[:, head : head + 1], one, 0.3))
        pool = torch.nn.functional.max_pool1d if pooling == "max" else (
            torch.nn.functional.avg_pool1d
        )  # fmt: skip
        rows.append(pool(attention[..., :35], 3, stride=1, padding=1).mean(dim=1))
    expected = torch.stack([(rows[0] + rows[1]) / 2, (rows[2] + rows[3]) / 2], dim=1)
    torch.testing.assert_close(found, expected)


def test_pyramid_budgets_fall_from_layer_to_layer() -> None:
    method = methods.create("pyramidkv", budget=120, window=8)
    table = method.budget_table(8000, ModelShape(32, 4, 2, 8))
    assert table[:, 0].tolist()[:3] == [242, 235, 228]
    assert int((table - 8)[:, 1].sum()) == 4016
    exact = methods.create("pyramidkv", preset="recommended", budget=120, window=8)
    assert int((exact.budget_table(8000, ModelShape(32, 4, 2, 8)) - 8).sum()) == 2 * 3840


def test_ada_moves_tokens_to_the_heads_that_use_them() -> None:
    queries, keys, values = tensors(1, 97)
    sharp = queries.clone()
    sharp[:, :2] *= 0.01  # the first KV head looks at everything alike, the second at few tokens
    sharp[:, 2:] *= 8
    method = methods.create("adakv", preset="recommended", budget=20, window=4, kernel=1)
    found = method.select(sharp, keys, values).budgets[0].tolist()
    assert sum(found) == 2 * 24
    assert found[0] > found[1] >= 4 + 4
    even = methods.create("adakv", budget=20, window=4, kernel=1, floor=1.0)
    assert even.select(sharp, keys, values).budgets[0].tolist() == [24, 24]


def test_ada_pyramid_gives_each_layer_its_part() -> None:
    options = {"budget": 20, "window": 4, "exact": True}
    method = methods.create("adakv", budgets={"kind": "pyramid", "beta": 4}, **options)
    plain = methods.create("pyramidkv", budget=20, window=4, beta=4)
    for layer in range(3):
        row = plain.budget_table(97, SHAPE)[layer]
        assert int(select(method, 1, 97, layer).budgets.sum()) == int(row.sum())


def test_cokv_gives_the_worst_groups_their_window_only() -> None:
    method = methods.create("cokv", scores=SCORES, budget=20, window=4)
    assert method.budget_table(200, SHAPE).tolist() == [[34, 10], [16, 58], [4, 22]]
    found = select(method, 1, 200, layer=2)
    assert kept(found, 0, 0) == [196, 197, 198, 199]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pyramidkv", {"beta": 0}, "beta 0 must be at least 1"),
        ("pyramidkv", {"budget": 1.5}, "budget 1.5 is not a whole number"),
        ("adakv", {"floor": 1.2}, r"floor 1.2 is outside \[0, 1\]"),
        ("adakv", {"safeguard": "none"}, "use mixed or reserved"),
        ("headkv", {}, "give scores=FILE"),
        ("cokv", {}, "give scores=FILE"),
        ("snapkv", {"order": "pool"}, "use mean_then_pool or pool_then_mean"),
        ("snapkv", {"budget": [1, 2], "budgets": "pyramid"}, "not both"),
        ("snapkv", {"total": -1}, "total -1 must be at least 0"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create(name, **options)


def test_scores_of_another_model_are_refused() -> None:
    for name in ("headkv", "cokv"):
        method = methods.create(name, scores=SCORES)
        with pytest.raises(UserError, match=r"3 layers x 2 heads .* has 5 layers x 4 query heads"):
            method.validate(ModelShape(5, 4, 2, 8))


def test_ada_cannot_be_split_over_processes() -> None:
    with pytest.raises(UserError, match="compares all heads of a layer"):
        methods.create("adakv").for_heads(slice(0, 1))
