"""ATSKV: what it keeps active, and what its two tiers do while decoding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.kernels.packing import pack
from catekv.kernels.ragged import storage_bytes
from catekv.methods import ModelShape, Observed
from catekv.methods.atskv.files import PredictorSet, save_predictors
from catekv.methods.atskv.relevance import PredictorConfig, RelevancePredictor, untrained_predictor
from catekv.methods.atskv.store import TierStore

BATCH, KV_HEADS, GROUP, DIM, HIDDEN_SIZE, TOKENS = 2, 2, 2, 8, 12, 60
HEADS = KV_HEADS * GROUP
SCALING = DIM**-0.5
SMALL: dict[str, Any] = {
    "untrained": True,
    "init_tokens": 2,
    "recent_tokens": 5,
    "predictor_width": 6,
    "feature_dim": 16,
    "lsh_bits": 2,
    "fetch": 3,
    "update_every": 1,
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(batch: int = BATCH, tokens: int = TOKENS, layer: int = 1) -> Observed:
    queries = 2 * random(batch, HEADS, tokens, DIM, seed=1)
    keys, values = random(2, batch, KV_HEADS, tokens, DIM, seed=2)
    sums = kernels.column_sums(queries, keys, SCALING)
    hidden = random(batch, tokens, HIDDEN_SIZE, seed=3)
    return Observed(queries[:, :, :0], keys, values, SCALING, layer, 3, sums, hidden)


def store_of(
    method: methods.Method, observed: Observed, valid: Tensor | None = None
) -> tuple[TierStore | None, Tensor]:
    selection = method.select_padded([observed], valid)[0]
    keep = selection.keep
    assert keep is not None
    prefix = pack(observed.keys, observed.values, keep)
    store = method.decode_store(prefix, observed, valid, selection)
    assert store is None or isinstance(store, TierStore)
    return store, keep


def step(
    store: TierStore, number: int, tail: Tensor, tokens: int = 1, visible: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One forward: returns its queries, its output and the whole tail [2, batch, ...]."""
    batch = tail.shape[1]
    queries = 2 * random(batch, HEADS, tokens, DIM, seed=100 + number)
    tail = torch.cat([tail, random(2, batch, KV_HEADS, tokens, DIM, seed=200 + number)], dim=3)
    prefix, blocks = store.read(queries, SCALING)
    assert blocks is None
    output = kernels.ragged_decode(queries, prefix, tail[0], tail[1], SCALING)
    assert store.absorb(queries, tail[0], tail[1], SCALING, visible) == 0
    return queries, output, tail


def empty_tail(batch: int = BATCH) -> Tensor:
    return torch.zeros(2, batch, KV_HEADS, 0, DIM)


def test_the_mask_is_the_quantile_of_the_predicted_relevance_and_the_edges() -> None:
    method, observed = methods.create("atskv", **SMALL), prompt()
    keep = method.select_padded([observed], None)[0].keep
    assert keep is not None
    relevance = method.relevance(observed)[0]
    for b in range(BATCH):
        wanted = relevance[b] > torch.quantile(relevance[b], 0.7)
        assert int(wanted.sum()) == 18
        wanted[:2] = wanted[-5:] = True
        for head in range(KV_HEADS):
            assert torch.equal(keep[b, head], wanted)


def test_edges_can_be_switched_off() -> None:
    method = methods.create("atskv", **{**SMALL, "init_tokens": 0, "recent_tokens": 0})
    assert method.select_padded([prompt()], None)[0].budgets.tolist() == [[18, 18]] * 2


def test_a_budget_moves_the_level_by_one_smoothed_step() -> None:
    method = methods.create("atskv", budget=30, **SMALL)
    assert method.prefill_level(60, 0) == pytest.approx(0.9 * 0.7 + 0.1 * 0.9)
    assert methods.create("atskv", **SMALL).prefill_level(60, 0) == 0.7


@pytest.mark.parametrize("budget", [7, 20, 59, 60, 90, None])
def test_recommended_keeps_exactly_the_budget(budget: int | None) -> None:
    method = methods.create("atskv", preset="recommended", budget=budget, **SMALL)
    found = method.select_padded([prompt()], None)[0]
    wanted = 18 if budget is None else min(60, budget)
    assert found.budgets.tolist() == [[wanted] * KV_HEADS] * BATCH
    shape = ModelShape(3, HEADS, KV_HEADS, DIM)
    assert method.budget_table(TOKENS, shape).tolist() == [[wanted] * KV_HEADS] * 3
    assert found.keep is not None
    assert bool(found.keep[..., :2].all())
    assert bool(found.keep[..., -5:].all())


def test_quantile_budgets_are_not_static() -> None:
    with pytest.raises(UserError, match="for every prompt"):
        methods.create("atskv", **SMALL).budget_table(60, ModelShape(3, 4, 2, 8))


def test_a_prompt_within_the_budget_is_kept_whole_for_good() -> None:
    method = methods.create("atskv", budget=60, **SMALL)
    store, keep = store_of(method, prompt())
    assert store is None
    assert bool(keep.all())


@pytest.mark.parametrize("preset", ["published", "recommended"])
def test_a_padded_batch_equals_its_single_prompts(preset: str) -> None:
    budget = 25 if preset == "recommended" else None
    method = methods.create("atskv", preset=preset, budget=budget, **SMALL)
    whole = prompt()
    valid = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    valid[1, :9] = False
    full = 2 * random(BATCH, HEADS, TOKENS, DIM, seed=1)
    sums = kernels.column_sums(full, whole.keys, SCALING, valid)
    padded = Observed(
        whole.queries, whole.keys, whole.values, SCALING, 1, 3, sums, whole.hidden_states
    )
    single = Observed(
        whole.queries[1:], whole.keys[1:, :, 9:], whole.values[1:, :, 9:], SCALING, 1, 3,
        sums[1:, :, 9:], whole.hidden_states[1:, 9:],
    )  # fmt: skip
    together, keep = store_of(method, padded, valid)
    alone, own = store_of(method, single)
    assert together is not None
    assert alone is not None
    assert torch.equal(keep[1, :, 9:], own[0])
    assert not bool(keep[1, :, :9].any())
    tail, own_tail = empty_tail(), empty_tail(1)
    for number in range(12):
        # the single run sees the second sequence of the same random numbers
        queries = 2 * random(BATCH, HEADS, 1, DIM, seed=100 + number)
        new = random(2, BATCH, KV_HEADS, 1, DIM, seed=200 + number)
        tail = torch.cat([tail, new], dim=3)
        own_tail = torch.cat([own_tail, new[:, 1:]], dim=3)
        outputs = []
        for store, asked, kept in ((together, queries, tail), (alone, queries[1:], own_tail)):
            prefix, _ = store.read(asked, SCALING)
            outputs.append(kernels.ragged_decode(asked, prefix, kept[0], kept[1], SCALING))
            store.absorb(asked, kept[0], kept[1], SCALING, None)
        torch.testing.assert_close(outputs[0][1:], outputs[1])
    assert torch.equal(together.active()[1, 9:], alone.active()[0])
    assert int(together.lengths()[1, 0]) == TOKENS - 9


def test_relevance_is_computed_once_for_choosing_and_for_the_tiers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = []
    original = RelevancePredictor.static_part

    def counted(self: RelevancePredictor, *arguments: Any) -> Tensor:
        computed.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(RelevancePredictor, "static_part", counted)
    store_of(methods.create("atskv", untrained=True), prompt())
    assert len(computed) == 1


def test_attention_rows_are_added_to_what_was_attended_to() -> None:
    observed = prompt()
    store, keep = store_of(methods.create("atskv", **{**SMALL, "update_every": 99}), observed)
    assert store is not None
    assert observed.column_sums is not None
    tail = empty_tail()
    sums = observed.column_sums.clone()
    observers = torch.arange(TOKENS, 0, -1).float().expand(BATCH, KV_HEADS, TOKENS).clone()
    for number, tokens in enumerate([1, 3, 1]):
        queries, _, tail = step(store, number, tail, tokens)
        for b in range(BATCH):
            for head in range(KV_HEADS):
                columns = store.tiers.slot_columns[b][head]
                columns = columns[store.tiers.block(b)[2][head] == 0]
                assert set(keep[b, head].nonzero().squeeze(-1).tolist()) <= set(columns.tolist())
                observers[b, head, columns] += tokens
                keys = torch.cat([observed.keys[b, head, columns], tail[0, b, head]])
                for member in range(head * GROUP, (head + 1) * GROUP):
                    for index in range(tokens):
                        seen = len(keys) - tokens + index + 1
                        logits = queries[b, member, index] @ keys[:seen].T * SCALING
                        sums[b, member, columns] += logits.softmax(dim=-1)[: len(columns)]
    torch.testing.assert_close(store.state.sums, sums)
    torch.testing.assert_close(store.state.observers, observers)


def test_small_blocks_change_no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods.create("atskv", **{**SMALL, "update_every": 99})
    whole, blocks = store_of(method, prompt())[0], store_of(method, prompt())[0]
    assert whole is not None
    assert blocks is not None
    step(whole, 0, empty_tail(), 6)
    monkeypatch.setattr("catekv.methods.atskv.store.BLOCK_ENTRIES", 5)
    monkeypatch.setattr("catekv.methods.atskv.store.MAX_LOGITS", 1)
    step(blocks, 0, empty_tail(), 6)
    torch.testing.assert_close(whole.state.sums, blocks.state.sums)


def test_hidden_tail_columns_and_queries_of_padding_count_for_nothing() -> None:
    method = methods.create("atskv", **{**SMALL, "update_every": 99})
    padded, plain = store_of(method, prompt())[0], store_of(method, prompt())[0]
    assert padded is not None
    assert plain is not None
    queries = random(BATCH, HEADS, 4, DIM, seed=7)
    tail = random(2, BATCH, KV_HEADS, 4, DIM, seed=8)
    visible = torch.tensor([[False, False, True, True]] * BATCH)
    for store, part in ((padded, slice(0, 4)), (plain, slice(2, 4))):
        store.read(queries[:, :, part], SCALING)
        store.absorb(
            queries[:, :, part],
            tail[0][:, :, part],
            tail[1][:, :, part],
            SCALING,
            visible if store is padded else None,
        )
    torch.testing.assert_close(padded.state.sums, plain.state.sums)
    torch.testing.assert_close(padded.state.observers, plain.state.observers)


def test_updates_follow_the_rules() -> None:
    """Relevance is set by hand; levels, soft masks and tiers are computed again from the rules."""
    method = methods.create("atskv", budget=20, **SMALL)
    store, keep = store_of(method, prompt(1))
    assert store is not None
    active, level = keep[0, 0].clone(), method.prefill_level(TOKENS, 1)
    soft = store.state.soft[0].clone()
    fixed = method.edges(TOKENS, torch.device("cpu"))
    moved = 0
    for number in range(12):
        scores = random(1, TOKENS, seed=50 + number // 6).sigmoid() ** 2
        store.relevance = lambda scores=scores: scores  # type: ignore[method-assign]
        store.update(tail=number)
        pressure = (int(active.sum()) + number) / 20
        level = 0.9 * level + 0.1 * (0.5 + 0.4 * min(1.0, pressure))
        mask = scores[0] > torch.quantile(scores[0], level)
        soft = 0.8 * soft + 0.2 * mask
        down = active & ~fixed & ((scores[0] < 0.2) | (soft <= 0.5))
        up = ~active & ~fixed & (scores[0] > 0.8) & (soft > 0.5)
        active = (active & ~down) | up
        moved += int(down.sum()) + 100 * int(up.sum())
        assert torch.equal(store.active()[0], active)
        assert store.state.levels[0] == pytest.approx(level)
        torch.testing.assert_close(store.state.soft[0], soft)
    assert moved % 100 > 5, "nothing was demoted"


def test_promotion_needs_a_high_relevance_and_a_lasting_mask() -> None:
    store, keep = store_of(methods.create("atskv", **SMALL), prompt(1))
    assert store is not None
    token = int((~keep[0, 0]).nonzero()[0])
    scores = torch.full((1, TOKENS), 0.5)
    scores[0, token] = 0.95
    store.relevance = lambda: scores  # type: ignore[method-assign]
    there = []
    for _ in range(5):
        store.update(tail=0)
        there.append(bool(store.active()[0, token]))
    # 1 - 0.8^n exceeds one half at n = 4
    assert there == [False, False, False, True, True]


def test_exact_budgets_hold_while_entries_move() -> None:
    method = methods.create("atskv", preset="recommended", budget=20, **SMALL)
    store, _ = store_of(method, prompt())
    assert store is not None
    promoted = 0
    for number in range(30):
        before = store.active()
        scores = 0.15 + 0.85 * random(BATCH, TOKENS, seed=number // 6).sigmoid()
        store.relevance = lambda scores=scores: scores  # type: ignore[method-assign]
        store.update(tail=number)
        promoted += int((store.active() & ~before).sum())
        assert int(store.active().sum(dim=-1).max()) <= 20
    assert promoted > 3


@pytest.mark.parametrize("preset", ["published", "recommended"])
def test_no_token_is_lost_while_decoding(preset: str) -> None:
    observed = prompt()
    options = {**SMALL, "promote_above": 0.5, "demote_below": 0.45, "momentum": 0.4}
    store, _ = store_of(methods.create("atskv", preset=preset, budget=25, **options), observed)
    assert store is not None
    tail, places = empty_tail(), set()
    for number in range(25):
        scores = random(BATCH, TOKENS, seed=60 + number // 3).sigmoid()
        store.relevance = lambda scores=scores: scores  # type: ignore[method-assign]
        _, output, tail = step(store, number, tail)
        assert bool(output.isfinite().all())
        assert store.lengths().tolist() == [[TOKENS] * KV_HEADS] * BATCH
        active = store.active()
        places.add(tuple(active[0].tolist()))
        for b in range(BATCH):
            tier = store.tiers.passive[b]
            assert sorted(tier.columns.tolist() + store.tiers.columns[b].tolist()) == list(
                range(TOKENS)
            )
            assert torch.equal(tier.index.keys, observed.keys[b][:, tier.columns])
            keys = store.tiers.block(b)[0][:, : len(store.tiers.columns[b])]
            assert torch.equal(keys, observed.keys[b][:, store.tiers.columns[b]])
        assert bool(active[:, :2].all())
        assert bool(active[:, -5:].all())
    assert len(places) > 2, "nothing moved"


def test_without_updates_the_tiers_stay() -> None:
    store, keep = store_of(methods.create("atskv", **{**SMALL, "update_every": 0}), prompt())
    assert store is not None
    sums, tail = store.state.sums.clone(), empty_tail()
    for number in range(4):
        _, _, tail = step(store, number, tail)
    assert torch.equal(store.active(), keep[:, 0])
    assert torch.equal(store.state.sums, sums)


def test_updates_come_after_so_many_tokens() -> None:
    store, _ = store_of(methods.create("atskv", **{**SMALL, "update_every": 5}), prompt())
    assert store is not None
    calls: list[int] = []
    store.update = calls.append  # type: ignore[method-assign]
    tail = empty_tail()
    for number, tokens in enumerate([1, 1, 3, 4, 1, 1]):
        _, _, tail = step(store, number, tail, tokens)
    assert calls == [5, 10]


def test_copies_decode_on_their_own() -> None:
    method = methods.create("atskv", **SMALL)
    store, fresh = store_of(method, prompt())[0], store_of(method, prompt())[0]
    assert store is not None
    assert fresh is not None
    twin = copy.deepcopy(store)
    assert twin.tiers.prefix.keys.data_ptr() == store.tiers.prefix.keys.data_ptr()
    tail = empty_tail()
    for number in range(5):
        _, _, tail = step(twin, number, tail)
    assert torch.equal(store.state.sums, fresh.state.sums)
    assert torch.equal(store.active(), fresh.active())
    for mine, other in ((store, 0), (fresh, 0)):
        _, output, _ = step(mine, other, empty_tail())
        if mine is store:
            first = output
    assert torch.equal(first, output)


def test_rearranged_batches_decode_as_their_sequences() -> None:
    store, _ = store_of(methods.create("atskv", **SMALL), prompt())
    assert store is not None
    _, _, tail = step(store, 0, empty_tail())
    swapped = store.select_rows([1, 1, 0])
    queries = random(BATCH, HEADS, 1, DIM, seed=77)
    order = torch.tensor([1, 1, 0])
    prefix, _ = store.read(queries, SCALING)
    wanted = kernels.ragged_decode(queries, prefix, tail[0], tail[1], SCALING)
    prefix, _ = swapped.read(queries[order], SCALING)
    found = kernels.ragged_decode(queries[order], prefix, tail[0][order], tail[1][order], SCALING)
    torch.testing.assert_close(found, wanted[order])
    assert torch.equal(swapped.active(), store.active()[order])


def test_bytes_are_those_of_the_tensors() -> None:
    store, _ = store_of(methods.create("atskv", **SMALL), prompt())
    assert store is not None
    found = store.describe()
    assert found["device"] + found["host"] == storage_bytes(store.tensors())
    assert found["device"] == found["active"] + found["features"]
    assert found["host"] == found["passive"]
    entries = KV_HEADS * 2 * DIM * 4
    resting = sum(len(tier.columns) for tier in store.tiers.passive)
    assert resting > 60
    assert resting * entries < found["passive"] < resting * (entries + 64) + 1024


def saved_predictors(folder: Path, layers: int = 3, **changes: Any) -> str:
    config = PredictorConfig(
        **{"hidden_size": HIDDEN_SIZE, "query_heads": HEADS, "width": 7, "feature_dim": 20,
           "kind": "linear", "causal_normalised": False, **changes}
    )  # fmt: skip
    found = tuple(untrained_predictor(config, 9, layer) for layer in range(layers))
    save_predictors(folder, PredictorSet(found, (0.4, 0.5, 0.6), (1.0, 0.9, 0.8)))
    return str(folder)


def test_a_trained_predictor_brings_its_options_and_thresholds(tmp_path: Path) -> None:
    options = {"init_tokens": 0, "recent_tokens": 0, "lsh_bits": 2, "update_every": 1}
    method = methods.create("atskv", predictor=saved_predictors(tmp_path), **options)
    assert method.predictor_width == 7
    assert method.predictor_kind == "linear"
    assert method.causal_normalised is False
    assert method.threshold_numbers(1) == (0.5, 0.9)
    observed = prompt()
    keep = method.select_padded([observed], None)[0].keep
    relevance = method.relevance(observed)[0]
    assert keep is not None
    assert torch.equal(keep[0, 0], relevance[0] > 0.9 * torch.quantile(relevance[0], 0.5))
    again = methods.from_dict(json.loads(json.dumps(method.to_dict())))
    assert again == method
    store, _ = store_of(again, observed)
    assert store is not None
    tail = empty_tail()
    for number in range(3):
        _, _, tail = step(store, number, tail)
    assert float(store.state.observers.min()) == TOKENS + 3


def test_own_thresholds_override_those_of_the_file(tmp_path: Path) -> None:
    folder = saved_predictors(tmp_path)
    method = methods.create("atskv", predictor=folder, quantile=0.8, beta=1.0)
    assert method.threshold_numbers(2) == (0.8, 1.0)


def test_a_predictor_of_another_model_is_refused(tmp_path: Path) -> None:
    method = methods.create("atskv", predictor=saved_predictors(tmp_path))
    method.validate(ModelShape(3, HEADS, KV_HEADS, DIM))
    with pytest.raises(UserError, match="3 layers but the model has 2"):
        method.validate(ModelShape(2, HEADS, KV_HEADS, DIM))
    with pytest.raises(UserError, match="4 query heads but the model has 8"):
        method.validate(ModelShape(3, 8, KV_HEADS, DIM))
    with pytest.raises(UserError, match=r"predictor_width 32 does not fit .* has 7"):
        methods.create("atskv", predictor=str(tmp_path), predictor_width=32)
    with pytest.raises(UserError, match="holds no relevance predictors"):
        methods.create("atskv", predictor=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"untrained": False}, "needs a trained relevance predictor"),
        ({"predictor": "folder"}, "not both"),
        ({"quantile": 1.2}, r"quantile 1.2 is outside \[0, 1\]"),
        ({"momentum": -0.1}, "momentum -0.1 is outside"),
        ({"q_min": 0.9, "q_max": 0.5}, "q_min 0.9 is above q_max 0.5"),
        ({"demote_below": 0.9}, "demote_below 0.9 is above promote_above 0.8"),
        ({"budget": 6}, "budget 6 is smaller than the 7 tokens"),
        ({"init_tokens": -1}, "init_tokens -1"),
        ({"fetch": -1}, "fetch -1"),
        ({"lsh_bits": 0}, "lsh_bits 0"),
        ({"selection": "all"}, "use quantile or top"),
        ({"lsh_bits": 4.5}, "lsh_bits 4.5 is not a whole number"),
        ({"fetch": "x"}, "fetch 'x' is not a whole number"),
        ({"beta": -1.0}, "beta -1.0"),
        ({"beta": float("nan")}, "beta nan"),
        ({"momentum": "x"}, "momentum 'x' is not a number"),
        ({"predictor_kind": "tree"}, "predictor: unknown kind 'tree'; use mlp or linear"),
        ({"feature_dim": 18}, "feature_dim 18"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("atskv", **{**SMALL, **options})


def test_equal_memory_means_as_many_active_entries() -> None:
    shape = ModelShape(3, HEADS, KV_HEADS, DIM)
    method = methods.create("atskv", **SMALL).with_total(3 * KV_HEADS * 21 + 1, TOKENS, shape)
    assert method.select_padded([prompt()], None)[0].budgets.tolist() == [[21] * KV_HEADS] * BATCH
    with pytest.raises(UserError, match="budget 4 is smaller than the 7 tokens"):
        method.with_total(3 * KV_HEADS * 4, TOKENS, shape)


def test_hidden_states_must_be_given() -> None:
    observed = prompt()
    with pytest.raises(UserError, match="needs hidden_states"):
        methods.create("atskv", **SMALL).select(
            random(BATCH, HEADS, TOKENS, DIM, seed=1), observed.keys, observed.values
        )


def test_the_method_moves_what_it_does_not_keep() -> None:
    assert methods.method_class("atskv").effect == "moves"


def test_quantile_hysteresis_works_where_absolute_thresholds_empty_the_active_tier() -> None:
    """A predictor of small numbers, as training on shares of the maximum gives."""
    sizes = {}
    for hysteresis in ("absolute", "quantile"):
        method = methods.create("atskv", hysteresis=hysteresis, **SMALL)
        observed = prompt(1)
        low = method.relevance(observed)[0] * 0.1
        object.__setattr__(
            method,
            "relevance",
            lambda *given, low=low, method=method: (
                low,
                *type(method).relevance(method, *given)[1:],
            ),
        )
        store, keep = store_of(method, observed)
        assert store is not None
        store.relevance = lambda low=low: low  # type: ignore[method-assign]
        store.update(tail=0)
        sizes[hysteresis] = (int(keep[0, 0].sum()), int(store.active().sum()))
    assert sizes["absolute"][1] == 7, "only the edges are left"
    assert sizes["quantile"][1] == sizes["quantile"][0]


def test_change_thresholds_are_levels_of_the_prompt() -> None:
    scores = torch.arange(11) / 100
    absolute = methods.create("atskv", **SMALL)
    assert absolute.change_thresholds(scores) == (0.2, 0.8)
    relative = methods.create("atskv", hysteresis="quantile", **SMALL)
    assert relative.change_thresholds(scores) == pytest.approx((0.02, 0.08))


def test_without_a_passive_tier_the_rest_is_dropped() -> None:
    method = methods.create("atskv", passive="drop", **SMALL)
    store, keep = store_of(method, prompt())
    assert store is None
    assert torch.equal(keep, store_of(methods.create("atskv", **SMALL), prompt())[1])


def test_the_passive_tier_may_be_a_file(tmp_path: Path) -> None:
    method = methods.create("atskv", passive="file", passive_folder=tmp_path, **SMALL)
    store, _ = store_of(method, prompt())
    other, _ = store_of(methods.create("atskv", **SMALL), prompt())
    assert store is not None
    assert other is not None
    for number in range(4):
        outputs = [step(one, number, empty_tail())[1] for one in (store, other)]
        assert torch.equal(*outputs)
    found = store.describe()
    assert found["file"] > 0
    assert found["host"] + found["file"] == found["passive"]
    assert methods.from_dict(json.loads(json.dumps(method.to_dict()))) == method


def test_a_full_passive_tier_is_an_error_before_anything_is_lost() -> None:
    method = methods.create("atskv", passive_mib=0.001, **SMALL)
    observed = prompt()
    with pytest.raises(UserError, match=r"the passive tier is full.*raise passive_mib"):
        store_of(method, observed)
    entries = store_of(methods.create("atskv", **SMALL), observed)[0]
    assert entries is not None
    room = (entries.describe()["passive"] + 50) * 3 / 2**20
    store, _ = store_of(methods.create("atskv", passive_mib=room, **SMALL), observed)
    assert store is not None
    before, soft = store.active(), store.state.soft.clone()
    store.relevance = lambda: torch.zeros(BATCH, TOKENS)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the passive tier is full"):
        store.update(tail=0)
    assert torch.equal(store.active(), before)
    assert torch.equal(store.state.soft, soft)
    assert store.lengths().tolist() == [[TOKENS] * KV_HEADS] * BATCH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hysteresis": "none"}, "unknown hysteresis 'none'; use absolute or quantile"),
        ({"passive": "disk"}, "unknown passive 'disk'; use host, file, drop"),
        ({"passive_folder": "x"}, "passive_folder is for passive=file"),
        ({"passive_mib": -1.0}, "passive_mib -1.0 must be at least 0"),
    ],
)
def test_bad_tier_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("atskv", **{**SMALL, **options})
