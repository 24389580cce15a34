"""DynamicKV: budgets of layers from the scores of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape, Observed, Selection
from catekv.methods.dynamickv import layer_budgets, layer_counts
from catekv.methods.formulas.scoring import window_token_scores

LAYERS, WINDOW = 6, 4
OPTIONS = {"budget": 10, "window": WINDOW, "kernel": 3, "interval": 2, "r_max": 3}


def prompts(batch: int, tokens: int, group: int = 2, layers: int = LAYERS) -> list[Observed]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for layer in range(layers):
        # later layers look more sharply, so that their scores earn different shares
        queries = (1 + 2 * layer) * torch.randn(batch, 2 * group, WINDOW, 8, generator=generator)
        keys, values = torch.randn(2, batch, 2, tokens, 8, generator=generator)
        found.append(Observed(queries, keys, values, 8**-0.5, layer, layers))
    return found


def budgets_of(selections: list[Selection]) -> Tensor:
    return torch.stack([selection.budgets for selection in selections], dim=1)


def test_reference_budgets(golden) -> None:
    for case in golden("baselines", "dynamickv"):
        scores = torch.tensor(case["inputs"]["scores"])
        base = case["inputs"]["base"]
        layers, heads, entries = scores.shape
        counts = layer_counts(scores, base * heads * layers)
        assert counts.tolist() == case["expected"]["counts"]
        for scaling in ("official", "paper"):
            found = layer_budgets(scores, base * layers, entries, scaling=scaling)
            assert found.tolist() == case["expected"]["budgets"]


def test_worked_example() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.1, 0.05]], [[0.3, 0.2, 0.15, 0.1]]])
    assert layer_counts(scores, 4).tolist() == [2, 2]
    assert layer_budgets(scores, total=4, limit=4).tolist() == [2, 2]


def test_the_layer_with_the_higher_scores_gets_more() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.05]], [[0.3, 0.2, 0.15, 0.1]]])
    assert layer_counts(scores, 4).tolist() == [3, 1]
    assert layer_budgets(scores, total=4, limit=4).tolist() == [3, 1]
    # the cap of three tokens per layer leaves nothing to move
    assert layer_budgets(scores, total=4, limit=3).tolist() == [3, 1]
    # where it binds, the published rule loses tokens and the exact one moves them
    assert layer_budgets(scores, total=4, limit=2).tolist() == [2, 1]
    exact = layer_budgets(scores, total=4, limit=2, rounding="largest_remainder")
    assert exact.tolist() == [2, 2]


def test_ties_are_counted_for_the_earlier_layer() -> None:
    scores = torch.tensor([[[0.5, 0.5, 0.1]], [[0.5, 0.5, 0.5]], [[0.9, 0.5, 0.0]]])
    assert layer_counts(scores, 1).tolist() == [0, 0, 1]
    assert layer_counts(scores, 2).tolist() == [1, 0, 1]
    assert layer_counts(scores, 4).tolist() == [2, 1, 1]
    assert layer_counts(scores, 7).tolist() == [2, 3, 2]
    assert layer_counts(scores, 99).tolist() == [3, 3, 3]


def test_rounding_leaves_the_rest_to_the_last_layer() -> None:
    first = [[9.0, 8.0, 7.0], [1.0, 1.0, 1.0]]
    scores = torch.tensor([first, first, [[0.5] * 3, [0.5] * 3]])
    assert layer_counts(scores, 6).tolist() == [3, 3, 0]
    # halves of 3: floor leaves one over, the largest remainders are tied
    assert layer_budgets(scores, 3, limit=3).tolist() == [1, 1, 1]
    exact = layer_budgets(scores, 3, limit=3, rounding="largest_remainder")
    assert exact.tolist() == [2, 1, 0]


def test_updates_on_the_way_take_away_what_the_option_says() -> None:
    # the first layer of two earns all of the first update's tokens, but little later
    scores = torch.tensor([[[5.0, 4.0, 0.1, 0.1]], [[0.2, 0.2, 0.2, 0.2]], [[9.0, 8.0, 7.0, 6.0]],
                           [[9.0, 8.0, 0.1, 0.1]]])  # fmt: skip
    final = layer_counts(scores, 8)
    assert final.tolist() == [2, 0, 4, 2]
    assert layer_counts(scores[:2], 4).tolist() == [2, 2]
    assert layer_budgets(scores, 8, 4, interval=2).tolist() == [2, 0, 4, 2]
    assert layer_counts(scores[:1], 2).tolist() == [2]
    # with an update after every layer the share of one layer alone is everything: the whole
    # model's tokens (official) are no limit, its own two (paper) are
    rising = torch.tensor([[[5.0, 4.0, 3.0, 2.0]], [[0.1, 0.1, 0.1, 0.1]]])
    assert layer_budgets(rising, 4, 4, interval=1, scaling="official").tolist() == [4, 0]
    assert layer_budgets(rising, 4, 4, interval=1, scaling="paper").tolist() == [2, 0]
    exact = layer_budgets(rising, 4, 4, interval=1, scaling="paper", rounding="largest_remainder")
    assert exact.tolist() == [4, 0]


def test_layers_differ_and_heads_share_the_count_but_not_the_tokens() -> None:
    selections = methods.create("dynamickv", **OPTIONS).select_layers(prompts(1, 80))
    found = budgets_of(selections)[0]
    assert torch.equal(found[:, 0], found[:, 1])
    assert len(set(found[:, 0].tolist())) > 1
    keep = selections[-1].keep
    assert keep is not None
    assert not torch.equal(keep[0, 0], keep[0, 1])
    assert bool(keep[..., -WINDOW:].all())


@pytest.mark.parametrize("score_heads", ["query", "kv"])
@pytest.mark.parametrize("budget", [3, 10, 41])
def test_recommended_keeps_exactly_the_budget(budget: int, score_heads: str) -> None:
    options = {**OPTIONS, "budget": budget, "score_heads": score_heads}
    method = methods.create("dynamickv", preset="recommended", **options)
    found = budgets_of(method.select_layers(prompts(3, 80)))
    assert found.sum(dim=(1, 2)).tolist() == [(budget + WINDOW) * LAYERS * 2] * 3
    assert int(found.max()) <= 3 * budget + WINDOW


def test_equal_memory_is_exact() -> None:
    shape = ModelShape(LAYERS, 4, 2, 8)
    method = methods.create("dynamickv", **OPTIONS)
    for total in (LAYERS * 2 * WINDOW, 201, 202, LAYERS * 2 * 80 - 1, LAYERS * 2 * 80):
        found = method.with_total(total, 80, shape).select_layers(prompts(1, 80))
        assert int(budgets_of(found).sum()) == total
    with pytest.raises(UserError, match="does not hold the 4 that each"):
        method.with_total(40, 80, shape)


def test_budgets_that_follow_the_prompt_are_not_foretold() -> None:
    method = methods.create("dynamickv", **OPTIONS)
    assert method.budget_table(14, ModelShape(LAYERS, 4, 2, 8)).tolist() == [[14, 14]] * LAYERS
    with pytest.raises(UserError, match="for every prompt"):
        method.budget_table(15, ModelShape(LAYERS, 4, 2, 8))


def test_published_keeps_no_more_than_the_budget() -> None:
    for scaling in ("official", "paper"):
        method = methods.create("dynamickv", scaling=scaling, **OPTIONS)
        found = budgets_of(method.select_layers(prompts(2, 80)))
        assert int(found.sum(dim=(1, 2)).max()) <= (10 + WINDOW) * LAYERS * 2


def test_kept_tokens_are_the_best_by_window_score() -> None:
    observed = prompts(1, 80)
    selections = methods.create("dynamickv", **OPTIONS).select_layers(observed)
    for layer, selection in zip(observed, selections, strict=True):
        scores = window_token_scores(layer.queries, layer.keys, layer.scaling, 3)
        for head in range(2):
            count = int(selection.budgets[0, head]) - WINDOW
            order = scores[0, head].sort(descending=True, stable=True).indices[:count]
            assert selection.keep is not None
            kept = selection.keep[0, head, :-WINDOW].nonzero().squeeze(-1)
            assert torch.equal(kept, order.sort().values)


def test_query_heads_decide_the_budgets_by_default() -> None:
    observed = prompts(1, 80)
    by_query = methods.create("dynamickv", **OPTIONS).select_layers(observed)
    by_kv = methods.create("dynamickv", score_heads="kv", **OPTIONS).select_layers(observed)
    assert not torch.equal(budgets_of(by_query), budgets_of(by_kv))


def test_one_query_head_per_kv_head_needs_no_option() -> None:
    observed = prompts(1, 80, group=1)
    by_query = methods.create("dynamickv", **OPTIONS).select_layers(observed)
    by_kv = methods.create("dynamickv", score_heads="kv", **OPTIONS).select_layers(observed)
    assert torch.equal(budgets_of(by_query), budgets_of(by_kv))


def test_a_padded_batch_equals_its_single_prompts() -> None:
    method = methods.create("dynamickv", **OPTIONS)
    observed = prompts(2, 80)
    valid = torch.ones(2, 80, dtype=torch.bool)
    valid[1, :13] = False
    together = method.select_padded(observed, valid)
    short = [
        Observed(
            o.queries[1:], o.keys[1:, :, 13:], o.values[1:, :, 13:], o.scaling, o.layer, LAYERS
        )
        for o in observed
    ]
    first = [
        Observed(o.queries[:1], o.keys[:1], o.values[:1], o.scaling, o.layer, LAYERS)
        for o in observed
    ]
    for whole, one, two in zip(
        together, method.select_layers(first), method.select_layers(short), strict=True
    ):
        assert whole.keep is not None
        assert one.keep is not None
        assert two.keep is not None
        assert torch.equal(whole.keep[0], one.keep[0])
        assert torch.equal(whole.keep[1, :, 13:], two.keep[0])
        assert not bool(whole.keep[1, :, :13].any())


@pytest.mark.parametrize("tokens", [3, 10, 14])
def test_short_prompts_are_kept_whole(tokens: int) -> None:
    observed = [
        Observed(o.queries[:, :, -min(WINDOW, tokens) :], o.keys[:, :, :tokens],
                 o.values[:, :, :tokens], o.scaling, o.layer, LAYERS)
        for o in prompts(1, 80)
    ]  # fmt: skip
    for selection in methods.create("dynamickv", **OPTIONS).select_layers(observed):
        assert selection.keep is not None
        assert bool(selection.keep.all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "budget -1 must be"),
        ({"window": 0}, "window 0 must be"),
        ({"interval": 0}, "interval 0"),
        ({"r_max": 0.5}, "r_max 0.5 must be at least 1"),
        ({"kernel": 4}, "must be odd"),
        ({"total": -1}, "total -1"),
        ({"pooling": "sum"}, "use max or average"),
        ({"scaling": "code"}, "use official or paper"),
        ({"rounding": "up"}, "use floor or largest_remainder"),
        ({"score_heads": "all"}, "use query or kv"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("dynamickv", **options)
