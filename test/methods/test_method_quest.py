"""Quest: bounds of pages, and what a step reads."""

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
from catekv.kernels.page_bounds import best_first
from catekv.kernels.ragged import from_rows

KEYS = [
    [1, 0, 0.1, 0],
    [0.9, 0.1, 0, 0],
    [0, -2, 0, 0.1],
    [0, -1.5, 0.1, 0],
    [0.2, 0.2, 0.2, 0.2],
    [0.1, 0, 0.3, 0],
]
QUERY = [0.1, -1, 0.05, 0.6]


def bounds_of(queries: list[list[float]], keys: list[list[float]], page: int) -> torch.Tensor:
    """Largest bound over the queries of one row, [pages]."""
    stored = torch.tensor(keys, dtype=torch.float32)
    bounds = kernels.page_bounds(from_rows(stored, stored, None, [(0, len(keys))], 1), page)
    return kernels.page_scores(torch.tensor([queries])[:, :, None], bounds)[0, 0]


def test_worked_example() -> None:
    bounds = bounds_of([QUERY], KEYS, 2)
    torch.testing.assert_close(bounds, torch.tensor([0.105, 2.065, 0.155]))
    assert bounds.argmax() == 1


def test_golden_bounds(golden) -> None:
    for case in golden("baselines", "quest"):
        given, expected = case["inputs"], case["expected"]
        bounds = bounds_of([given["query"]], given["keys"], given["page"])
        torch.testing.assert_close(bounds, torch.tensor(expected["bounds"]), rtol=1e-5, atol=1e-5)
        true = (torch.tensor(given["keys"]) @ torch.tensor(given["query"])).view(-1, given["page"])
        torch.testing.assert_close(
            true.amax(dim=1), torch.tensor(expected["true_page_max"]), rtol=1e-5, atol=1e-5
        )
        order = bounds.sort(descending=True, stable=True).indices
        assert order[: given["top_pages"]].tolist() == expected["pages"]


def test_golden_group_scores(golden) -> None:
    for case in golden("catekv", "quest_chunk_scores"):
        given, expected = case["inputs"], case["expected"]
        scores = bounds_of(given["q_group"], given["keys"], given["page"])
        torch.testing.assert_close(scores, torch.tensor(expected["scores"]), rtol=1e-5, atol=1e-5)
        order = scores.sort(descending=True, stable=True).indices
        assert order[: given["top"]].tolist() == expected["best_first"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("page", [1, 3, 16])
def test_no_key_exceeds_the_bound_of_its_page(seed: int, page: int) -> None:
    observed = random_layer(1, 50, seed)
    prefix, _ = compressed(methods.create("full"), observed)
    queries = step_queries(1, seed + 100)
    bounds = kernels.page_scores(queries, kernels.page_bounds(prefix, page))[0]
    logits = queries.view(HEADS, GROUP, DIM) @ observed.keys[0].transpose(1, 2)
    own_page = torch.arange(50) // page
    assert (logits.amax(dim=1) <= bounds[:, own_page] + 1e-5).all()


def test_a_step_reads_the_pages_with_the_highest_bounds_and_nothing_else() -> None:
    observed = random_layer(2, 50)
    method = methods.create("quest", budget=24, page=8, least_pages=1)
    prefix, store = compressed(method, observed)
    queries = step_queries(2)
    seen, blocks = store.read(queries, DIM**-0.5)
    assert seen is prefix
    scores = kernels.page_scores(queries, kernels.page_bounds(prefix, 8)).flatten(0, 1)
    expected = []
    for row in range(2 * HEADS):
        pages = scores[row].topk(3).indices.tolist()
        expected.append(sorted(t for p in pages for t in range(8 * p, min(50, 8 * p + 8))))
        assert read_tokens(blocks, prefix, row) == expected[row]
    dense = step_output(restricted(observed, expected), queries)
    torch.testing.assert_close(step_output(prefix, queries, blocks), dense)


def test_first_layers_short_prompts_and_questions_are_read_whole() -> None:
    method = methods.create("quest", budget=32)
    assert compressed(method, random_layer(1, 200, layer=1))[1] is None
    assert compressed(method, random_layer(1, 48))[1] is None  # three pages are the least
    prefix, store = compressed(method, random_layer(1, 49))
    assert store.read(step_queries(1, tokens=5), 0.3) == (prefix, None)
    _, blocks = store.read(step_queries(1), 0.3)
    assert blocks.counts.tolist() == [3, 3]


def test_everything_stays_stored() -> None:
    prefix, store = compressed(methods.create("quest", budget=32), random_layer(1, 200))
    assert store.lengths().tolist() == [[200, 200]]
    held = sum(tensor.nbytes for tensor in store.tensors())
    assert held >= prefix.keys.nbytes * (2 + 2 / 16)


def test_a_padded_batch_reads_what_its_single_prompts_read() -> None:
    observed = random_layer(2, 90)
    valid = torch.ones(2, 90, dtype=torch.bool)
    valid[1, :37] = False
    method = methods.create("quest", budget=32, page=8)
    queries = step_queries(2)
    _, store = compressed(method, observed, valid)
    together = store_output(store, queries)
    for b, start in enumerate((0, 37)):
        alone = compressed(method, sequence(observed, b, start))[1]
        torch.testing.assert_close(together[b : b + 1], store_output(alone, queries[b : b + 1]))
    assert copy.deepcopy(store) is store


def test_a_batch_with_a_prompt_within_the_budget_reads_that_one_whole() -> None:
    observed = random_layer(2, 90)
    valid = torch.ones(2, 90, dtype=torch.bool)
    valid[0, :70] = False
    prefix, store = compressed(methods.create("quest", budget=32, page=8), observed, valid)
    _, blocks = store.read(step_queries(2), 0.3)
    assert read_tokens(blocks, prefix, 0) == list(range(20))
    assert len(read_tokens(blocks, prefix, 2)) == 32


def test_rearranged_rows_read_the_same() -> None:
    observed = random_layer(3, 70)
    _, store = compressed(methods.create("quest", budget=24, page=8), observed)
    queries = step_queries(3)
    order = [2, 0, 0]
    moved = store.select_rows(order)
    torch.testing.assert_close(
        store_output(moved, queries[order]), store_output(store, queries)[order]
    )
    assert store.select_rows([0, 1, 2]) is store


def test_the_best_pages_come_first_and_the_earlier_of_equal_ones() -> None:
    scores = torch.tensor([[0.5, -1.0, 2.0, 2.0, -0.0, 0.0], [-3.0, -1e-9, -torch.inf, -3.0, 1, 1]])
    assert best_first(scores, 6).tolist() == [[2, 3, 0, 4, 5, 1], [4, 5, 1, 0, 3, 2]]
    many = torch.randint(-5, 5, (3, 500), generator=torch.Generator().manual_seed(0)).float()
    order = many.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(best_first(many, 77), order[:, :77])


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match="page 0 must be at least 1"):
        methods.create("quest", page=0)
