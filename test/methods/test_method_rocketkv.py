"""RocketKV: the division of the compression, the estimate of pages, both stages and turns."""

from __future__ import annotations

import copy

import pytest
import torch
from decode_cases import (
    DIM,
    GROUP,
    HEADS,
    compressed,
    random_layer,
    read_tokens,
    restricted,
    sequence,
    step_output,
    step_queries,
    store_output,
)

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.kernels.ragged import from_rows
from catekv.methods import ModelShape
from catekv.methods.rocketkv import rocket_parameters
from catekv.methods.stores.hybrid import (
    HybridReader,
    HybridReading,
    hybrid_logits,
    page_probability,
    telling_dimensions,
)

KEYS = [
    [1, 0, 0.1, 0],
    [0.9, 0.1, 0, 0],
    [0, -2, 0, 0.1],
    [0, -1.5, 0.1, 0],
    [0.2, 0.2, 0.2, 0.2],
    [0.1, 0, 0.3, 0],
]
SMALL = {"budget": 16, "window": 4, "kernel": 5}


def estimate(queries: list[list[float]], keys: list[list[float]], page: int, dims: int):
    """Telling dimensions, logits and probabilities of the pages of one row."""
    stored = torch.tensor(keys, dtype=torch.float32)
    prefix = from_rows(stored, stored, None, [(0, len(keys))], 1)
    bounds = kernels.page_bounds(prefix, page)
    asked = torch.tensor([queries])
    logits = hybrid_logits(
        asked, torch.cat([bounds.high, bounds.low], dim=-1).transpose(1, 2), dims
    )
    chosen, _ = telling_dimensions(asked, dims)
    return chosen[0], logits[0], page_probability(logits, stored.shape[-1] ** -0.5)[0]


@pytest.mark.parametrize(
    ("compression", "r", "stage1", "stage2", "page", "factor"),
    [(16, 0.44, 3.387, 4.724, 3, 1.575), (64, 0.56, 10.267, 6.233, 3, 2.078)],
)
def test_division_of_the_compression(compression, r, stage1, stage2, page, factor) -> None:
    found = rocket_parameters(compression)
    assert found.r == pytest.approx(r)
    assert found.stage1 == pytest.approx(stage1, abs=1e-3)
    assert found.stage2 == pytest.approx(stage2, abs=1e-3)
    assert (found.page, round(found.head_dim_factor, 3)) == (page, factor)
    assert found.stage1 * found.stage2 == pytest.approx(compression)


def test_golden_parameters(golden) -> None:
    for case in golden("baselines", "rocketkv_params"):
        found = rocket_parameters(case["inputs"]["compression"])
        for name, expected in case["expected"].items():
            assert getattr(found, name) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_released_page_is_no_longer_than_the_stage_compresses() -> None:
    assert rocket_parameters(2).page == 2
    assert rocket_parameters(2, "released").page == 1


def test_the_exponent_is_at_most_four_fifths() -> None:
    assert rocket_parameters(2.0**20).r == 0.8


def test_worked_example() -> None:
    chosen, logits, probability = estimate([[0.1, -1, 0.05, 0.6]], KEYS, page=2, dims=2)
    assert sorted(chosen.tolist()) == [1, 3]
    torch.testing.assert_close(logits, torch.tensor([[0.0, 2.06, 0.12]]))
    assert probability.argmax() == 1


def test_golden_selection(golden) -> None:
    for case in golden("baselines", "rocketkv_hsa"):
        given, expected = case["inputs"], case["expected"]
        chosen, logits, probability = estimate(
            given["q_group"], given["keys"], given["page"], given["dims"]
        )
        assert sorted(chosen.tolist()) == expected["dims"]
        torch.testing.assert_close(
            logits, torch.tensor(expected["page_logits"]), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            probability, torch.tensor(expected["page_probability"]), rtol=1e-5, atol=1e-5
        )
        order = probability.sort(descending=True, stable=True).indices
        assert order[: given["top_pages"]].tolist() == expected["pages"]


def test_stage_one_keeps_what_the_division_says() -> None:
    method = methods.create("rocketkv", **SMALL)
    prefix, _ = compressed(method, random_layer(1, 256, window=4))
    expected = int(256 / 16**0.44)
    assert [length for _, length in prefix.host_rows] == [expected] * HEADS
    shape = ModelShape(2, 4, 2, DIM)
    assert method.budget_table(256, shape).unique().tolist() == [expected]


def test_a_step_reads_half_the_budget_exactly() -> None:
    observed = random_layer(2, 256, window=4)
    prefix, store = compressed(methods.create("rocketkv", **SMALL), observed)
    queries = step_queries(2)
    _, blocks = store.read(queries, DIM**-0.5)
    page = rocket_parameters(16).page
    assert (blocks.size, blocks.counts.unique().tolist()) == (page, [8 // page])
    keys = [prefix.row(b, h) for b in range(2) for h in range(HEADS)]
    rows = [read_tokens(blocks, prefix, row) for row in range(2 * HEADS)]
    flat = [torch.cat([keys[row][i][rows[row]] for row in range(2 * HEADS)]) for i in (0, 1)]
    starts = [sum(map(len, rows[:row])) for row in range(2 * HEADS)]
    part = from_rows(
        flat[0], flat[1], None, [(s, len(r)) for s, r in zip(starts, rows, strict=True)], HEADS
    )
    torch.testing.assert_close(step_output(prefix, queries, blocks), step_output(part, queries))


def test_prompts_within_the_budget_are_kept_and_read_whole() -> None:
    prefix, store = compressed(methods.create("rocketkv", **SMALL), random_layer(1, 16, window=4))
    assert store is None
    assert prefix.uniform_length == 16


def test_questions_read_everything_that_is_kept() -> None:
    prefix, store = compressed(methods.create("rocketkv", **SMALL), random_layer(1, 90, window=4))
    assert store.read(step_queries(1, tokens=3), 0.3) == (prefix, None)


@pytest.mark.parametrize("multi_turn", [False, True])
@pytest.mark.parametrize("padding", [40, 150, 190])
def test_a_padded_batch_reads_what_its_single_prompts_read(multi_turn: bool, padding: int) -> None:
    """Compressions, and with them the sizes of pages, differ between the sequences."""
    observed = random_layer(2, 200, window=4)
    valid = torch.ones(2, 200, dtype=torch.bool)
    valid[1, :padding] = False
    method = methods.create("rocketkv", **SMALL, multi_turn=multi_turn)
    queries = step_queries(2)
    store = compressed(method, observed, valid)[1]
    together = store_output(store, queries)
    for b, start in enumerate((0, padding)):
        prefix, alone = compressed(method, sequence(observed, b, start))
        own = queries[b : b + 1]
        expected = step_output(prefix, own) if alone is None else store_output(alone, own)
        torch.testing.assert_close(together[b : b + 1], expected)


def test_several_turns_store_everything_and_filter() -> None:
    observed = random_layer(1, 200, window=4)
    prefix, store = compressed(methods.create("rocketkv", **SMALL, multi_turn=True), observed)
    once, _ = compressed(methods.create("rocketkv", **SMALL), observed)
    assert prefix.uniform_length == 200
    kept = methods.create("rocketkv", **SMALL).select_padded([observed], None)[0].keep
    assert kept.sum() == once.slots
    page = store.size
    _, blocks = store.read(step_queries(1), DIM**-0.5)
    for row in range(HEADS):
        pages = {token // page for token in kept[0, row].nonzero().flatten().tolist()}
        assert {token // page for token in read_tokens(blocks, prefix, row)} <= pages


def test_a_question_chooses_other_candidates_for_its_own_context_only() -> None:
    observed = random_layer(1, 200, window=4)
    prefix, store = compressed(methods.create("rocketkv", **SMALL, multi_turn=True), observed)
    fork = copy.deepcopy(store)
    before = store.tables["candidates"].clone()
    # a question about one token: every query of it looks at token 77 and nothing else
    wanted = observed.keys[0, :, 77] * 30
    question = wanted.repeat_interleave(GROUP, dim=0)[None, :, None].expand(-1, -1, 6, -1)
    tail = torch.zeros(1, HEADS, 6, DIM)
    assert store.absorb(question, tail, tail, DIM**-0.5, None) == 0
    assert not torch.equal(store.tables["candidates"], before)
    assert torch.equal(fork.tables["candidates"], before)
    assert store.tables["candidates"][:, 77 // store.size].all()
    _, blocks = store.read(step_queries(1), DIM**-0.5)
    for row in range(HEADS):
        read = {token // store.size for token in read_tokens(blocks, prefix, row)}
        assert read <= set(store.tables["candidates"][row].nonzero().flatten().tolist())


def test_rearranged_rows_have_candidates_of_their_own() -> None:
    with torch.inference_mode():
        method = methods.create("rocketkv", **SMALL, multi_turn=True)
        store = compressed(method, random_layer(3, 200, window=4))[1]
        moved = store.select_rows([2, 0, 0])
    rows = [4, 5, 0, 1, 0, 1]
    assert torch.equal(moved.tables["candidates"], store.tables["candidates"][rows])
    question, tail = step_queries(3, tokens=6), torch.zeros(3, HEADS, 6, DIM)
    before = store.tables["candidates"].clone()
    moved.absorb(question, tail, tail, DIM**-0.5, None)
    assert not torch.equal(moved.tables["candidates"], before[rows])
    assert torch.equal(store.tables["candidates"], before)


def test_padding_in_a_question_changes_nothing() -> None:
    observed = random_layer(1, 200, window=4)
    method = methods.create("rocketkv", **SMALL, multi_turn=True)
    plain, padded = (compressed(method, observed)[1] for _ in range(2))
    queries = step_queries(1, tokens=7)
    tail = torch.randn(1, HEADS, 7, DIM, generator=torch.Generator().manual_seed(3))
    visible = torch.arange(7)[None] >= 3
    plain.absorb(queries[:, :, 3:], tail[:, :, 3:], tail[:, :, 3:], DIM**-0.5, None)
    padded.absorb(queries, tail, tail, DIM**-0.5, visible)
    assert torch.equal(plain.tables["candidates"], padded.tables["candidates"])


def test_rows_with_pages_of_different_size_share_one_list() -> None:
    prefix, _ = compressed(methods.create("full"), random_layer(1, 50))
    queries = step_queries(1)
    readings = [HybridReading(4, 2, dims=3), HybridReading(7, 1, always=1, dims=5)]
    _, blocks = HybridReader.build(prefix, readings).read(queries, 0.3)
    for row in range(HEADS):
        alone = [reading if at == row else None for at, reading in enumerate(readings)]
        _, expected = HybridReader.build(prefix, alone).read(queries, 0.3)
        assert read_tokens(blocks, prefix, row) == read_tokens(expected, prefix, row)
    assert 49 in read_tokens(blocks, prefix, 1)


def test_everything_is_read_when_the_budget_allows_it() -> None:
    observed = random_layer(1, 60, window=4)
    method = methods.create("rocketkv", budget=60, window=4)
    prefix, store = compressed(method, observed)
    assert store is None
    queries = step_queries(1)
    whole = restricted(observed, [list(range(60))] * HEADS)
    torch.testing.assert_close(step_output(prefix, queries), step_output(whole, queries))


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match="budget 16 is smaller than the window of 32"):
        methods.create("rocketkv", budget=16)
    with pytest.raises(UserError, match="unknown page_rule 'x'; use paper or released"):
        methods.create("rocketkv", page_rule="x")
