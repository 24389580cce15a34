"""H2O: prefill selection, running sums and eviction while decoding."""

from __future__ import annotations

import copy

import pytest
import torch
from slot_rows import DIM, GROUP, HEADS, SCALING, after_prefill, decode, entries, random_tensors

from catekv import methods
from catekv.errors import UserError
from catekv.kernels.ragged import from_rows, storage_bytes
from catekv.methods import ModelShape
from catekv.methods.h2o import heavy_and_recent, received_attention
from catekv.methods.stores.slots import Entries, Eviction, SlotStore

ATTENTION = [
    [1, 0, 0, 0, 0],
    [0.6, 0.4, 0, 0, 0],
    [0.5, 0.1, 0.4, 0, 0],
    [0.5, 0.1, 0.3, 0.1, 0],
    [0.4, 0.1, 0.2, 0.1, 0.2],
]


def kept_positions(attention: list, heavy: int, recent: int) -> tuple[torch.Tensor, list[int]]:
    sums = received_attention(torch.tensor(attention)[None, None].sum(dim=2), 1)[0, 0]
    return sums, heavy_and_recent(sums, torch.tensor(heavy), recent).nonzero().flatten().tolist()


def test_worked_example_of_the_selection() -> None:
    sums, kept = kept_positions(ATTENTION, 2, 1)
    torch.testing.assert_close(sums, torch.tensor([3.0, 0.7, 0.9, 0.2, 0.2]))
    assert kept == [0, 2, 4]


def test_golden_selection(golden) -> None:
    for case in golden("baselines", "h2o_keep"):
        given = case["inputs"]
        sums, kept = kept_positions(given["attention"], given["heavy"], given["recent"])
        torch.testing.assert_close(sums, torch.tensor(case["expected"]["scores"]))
        assert kept == case["expected"]["kept"]


def step_with_weights(sums: list, row: list, capacity: int, recent: int) -> tuple[list, int]:
    """One decode step whose attention row is given: sums by position, evicted position."""
    # keys along one axis give any logits: the query is 1 there
    logits = torch.tensor(row).log()
    count = len(sums)
    prefix = from_rows(logits[:count, None], torch.zeros(count, 1), None, [(0, count)], 1)
    known = Entries(torch.arange(count)[None], torch.tensor([sums]), torch.tensor([count]))
    store = SlotStore(prefix, known, Eviction(capacity, recent))
    one = torch.ones(1, 1, 1, 1)
    store.absorb(one, one * logits[count], one, 1.0, None)
    found = store.entries
    by_position = {
        int(p): float(s) for p, s in zip(found.positions[0], found.scores[0], strict=True) if p >= 0
    }
    (evicted,) = set(range(count + 1)) - set(by_position)
    return [by_position.get(position) for position in range(count + 1)], evicted


def test_worked_example_of_a_decode_step() -> None:
    sums, evicted = step_with_weights([3.0, 0.7, 0.9, 0.2], [0.3, 0.1, 0.2, 0.1, 0.3], 4, 1)
    assert evicted == 3
    assert sums == pytest.approx([3.3, 0.8, 1.1, None, 0.3])


def test_golden_decode_step(golden) -> None:
    for case in golden("baselines", "h2o_decode"):
        sums, evicted = step_with_weights(**case["inputs"])
        assert evicted == case["expected"]["evicted"]
        expected = [None if i == evicted else x for i, x in enumerate(case["expected"]["sums"])]
        assert sums == pytest.approx(expected, abs=1e-5)


def simulate(queries, keys, prompt: int, capacity: int, recent: int) -> tuple[list, dict]:
    """H2O for one row, token by token, from its definition."""
    logits = queries.double() @ keys.double().T * SCALING
    sums: dict[int, float] = {}
    alive: list[int] = []
    evicted = []
    for token in range(keys.shape[0]):
        alive.append(token)
        sums[token] = 0.0
        # a prompt is seen whole before anything is dropped
        weights = logits[:, token, alive].softmax(dim=-1).mean(dim=0)
        for position, weight in zip(alive, weights.tolist(), strict=True):
            sums[position] += weight
        if token == prompt - 1:
            old = sorted(alive[: prompt - recent], key=lambda p: (-sums[p], p))
            alive = sorted(old[: capacity - recent]) + alive[prompt - recent :]
        elif token >= prompt and len(alive) > capacity:
            victim = min(alive[:-recent], key=lambda p: (sums[p], p))
            alive.remove(victim)
            evicted.append(victim)
    return alive, sums


@pytest.mark.parametrize("chunks", [[1] * 20, [6, 1, 1, 9, 3]])
def test_decoding_follows_the_definition(chunks: list[int]) -> None:
    prompt, capacity, recent = 23, 12, 5
    queries, keys, values = random_tensors(2, prompt + 20)
    method = methods.create("h2o", budget=capacity, recent=recent)
    _, store = after_prefill(method, *(x[:, :, :prompt] for x in (queries, keys, values)))
    start = prompt
    for size in chunks:
        part = slice(start, start + size)
        decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
        start += size
        assert store.lengths().tolist() == [[capacity] * HEADS] * 2
    for row in range(2 * HEADS):
        b, head = divmod(row, HEADS)
        own = queries[b, head * GROUP : (head + 1) * GROUP]
        alive, sums = simulate(own, keys[b, head], prompt, capacity, recent)
        found = entries(store, row)
        assert sorted(found) == alive
        for slot, position in enumerate(store.entries.positions[row].tolist()):
            if position >= 0:
                assert float(store.entries.scores[row, slot]) == pytest.approx(
                    sums[position], abs=1e-5
                )
        for position, (key, value, bias) in found.items():
            assert torch.equal(key, keys[b, head, position])
            assert torch.equal(value, values[b, head, position])
            assert bias == 0.0


def test_attention_while_decoding_is_over_what_is_held() -> None:
    queries, keys, values = random_tensors(1, 40)
    method = methods.create("h2o", budget=10)
    _, store = after_prefill(method, *(x[:, :, :20] for x in (queries, keys, values)))
    for token in range(20, 40):
        held = [sorted(entries(store, row)) for row in range(HEADS)]
        part = slice(token, token + 1)
        found = decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
        for head in range(HEADS):
            seen = [*held[head], token]
            for member in range(head * GROUP, (head + 1) * GROUP):
                weights = (keys[0, head, seen] @ queries[0, member, token] * SCALING).softmax(0)
                torch.testing.assert_close(found[0, member, 0], weights @ values[0, head, seen])


def test_memory_is_bounded_while_decoding() -> None:
    queries, keys, values = random_tensors(1, 400)
    method = methods.create("h2o", budget=16)
    _, store = after_prefill(method, *(x[:, :, :30] for x in (queries, keys, values)))
    sizes = set()
    for token in range(30, 400):
        part = slice(token, token + 1)
        decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
        sizes.add(storage_bytes(store.tensors()))
    assert len(sizes) == 1
    assert store.read(queries, SCALING)[0].slots == 16 * HEADS


def test_a_short_prompt_fills_up_before_anything_is_dropped() -> None:
    queries, keys, values = random_tensors(1, 300)
    method = methods.create("h2o", budget=150, recent=4)
    _, store = after_prefill(method, *(x[:, :, :5] for x in (queries, keys, values)))
    for token in range(5, 300):
        part = slice(token, token + 1)
        decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
        assert store.lengths().tolist() == [[min(150, token + 1)] * HEADS]
        if token == 149:
            assert sorted(entries(store, 0)) == list(range(150))


def test_an_infinite_budget_equals_full_attention() -> None:
    queries, keys, values = random_tensors(2, 30)
    method = methods.create("h2o", budget=10**9)
    _, store = after_prefill(method, *(x[:, :, :20] for x in (queries, keys, values)))
    for start, stop in ((20, 25), (25, 26), (26, 30)):
        part = slice(start, stop)
        found = decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
        expected = torch.nn.functional.scaled_dot_product_attention(
            queries[:, :, part],
            keys[:, :, :stop],
            values[:, :, :stop],
            torch.ones(stop - start, stop, dtype=torch.bool).tril(start),
            scale=SCALING,
            enable_gqa=True,
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_padding_is_dropped_and_batches_equal_single_rows() -> None:
    queries, keys, values = random_tensors(2, 50)
    valid = torch.ones(2, 50, dtype=torch.bool)
    valid[1, :7] = False
    valid[1, 30:33] = False  # the second turn is padded as well
    method = methods.create("h2o", budget=9)
    prompt = slice(0, 30)
    _, both = after_prefill(
        method, *(x[:, :, prompt] for x in (queries, keys, values)), valid[:, prompt]
    )
    single = []
    for row in range(2):
        own = valid[row].nonzero().flatten()
        first = own[own < 30]
        tensors = [x[row : row + 1, :, first] for x in (queries, keys, values)]
        single.append(after_prefill(method, *tensors)[1])
    for start, stop in ((30, 40), (40, 41), (41, 42), (42, 50)):
        part = slice(start, stop)
        together = decode(
            both, queries[:, :, part], keys[:, :, part], values[:, :, part], valid[:, part]
        )
        assert not bool(together.isnan().any())
        for row in range(2):
            own = torch.arange(start, stop)[valid[row, part]]
            alone = decode(
                single[row], *(x[row : row + 1, :, own] for x in (queries, keys, values))
            )
            torch.testing.assert_close(
                together[row : row + 1, :, own - start], alone, rtol=1e-5, atol=1e-5
            )
    for row in range(2 * HEADS):
        alone = entries(single[row // HEADS], row % HEADS)
        assert sorted(entries(both, row)) == sorted(alone)


def test_copies_and_rearranged_batches_go_their_own_way() -> None:
    queries, keys, values = random_tensors(2, 40)
    method = methods.create("h2o", budget=9)
    _, store = after_prefill(method, *(x[:, :, :30] for x in (queries, keys, values)))
    before = [sorted(entries(store, row)) for row in range(2 * HEADS)]
    fork = copy.deepcopy(store)
    beams = store.select_rows([1, 1, 0])
    step = [x[:, :, 30:31] for x in (queries, keys, values)]
    alone = decode(store, *step)
    assert [sorted(entries(fork, row)) for row in range(2 * HEADS)] == before
    torch.testing.assert_close(decode(fork, *step), alone, rtol=0, atol=0)
    wide = decode(beams, *(x[[1, 1, 0]] for x in step))
    torch.testing.assert_close(wide, alone[[1, 1, 0]])
    assert [sorted(entries(beams, row)) for row in range(2)] == [
        sorted(entries(store, row)) for row in (2, 3)
    ]


def test_rows_may_hold_different_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 9, 5, 1, 7, 2, 8, 6, 4, 10, 11, 12]
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    keys, values = torch.randn(2, start, DIM, generator=generator)
    prefix = from_rows(keys, values, None, rows, 2)
    positions = torch.full((12, 12), -1)
    for row, length in enumerate(lengths):
        positions[row, :length] = torch.arange(length)
    known = Entries(positions, torch.zeros(12, 12), torch.tensor(lengths))
    store = SlotStore(prefix, known, Eviction(lengths, 2))
    queries, more_keys, more_values = random_tensors(6, 15)
    for token in range(15):
        part = slice(token, token + 1)
        decode(store, queries[:, :, part], more_keys[:, :, part], more_values[:, :, part])
    assert store.lengths().flatten().tolist() == lengths
    for row, length in enumerate(lengths):
        assert length + 14 in entries(store, row)


def test_budgets_are_exact_and_foretold() -> None:
    method = methods.create("h2o", budget=12)
    queries, keys, values = random_tensors(1, 40)
    for tokens in (1, 11, 12, 13, 40):
        found = method.select(*(x[:, :, :tokens] for x in (queries, keys, values)))
        table = method.budget_table(tokens, ModelShape(3, 4, HEADS, DIM))
        assert torch.equal(found.budgets[0], table[0])


def test_budgets_may_differ_between_heads() -> None:
    queries, keys, values = random_tensors(1, 60)
    method = methods.create("h2o", budget=12, recent=3, budgets=[[2, 7]])
    assert method.budget_table(60, ModelShape(3, 4, HEADS, DIM)).tolist() == [[5, 10]] * 3
    _, store = after_prefill(method, *(x[:, :, :40] for x in (queries, keys, values)))
    for token in range(40, 60):
        part = slice(token, token + 1)
        decode(store, queries[:, :, part], keys[:, :, part], values[:, :, part])
    assert store.lengths().tolist() == [[5, 10]]


@pytest.mark.parametrize("recent", [None, 3])
@pytest.mark.parametrize("total", [25, 61, 6 * 60, 1000])
def test_a_total_is_kept_exactly(total: int, recent: int | None) -> None:
    shape = ModelShape(3, 4, HEADS, DIM)
    method = methods.create("h2o", recent=recent).with_total(total, 60, shape)
    table = method.budget_table(60, shape)
    assert int(table.sum()) == min(total, 6 * 60)
    for layer in range(3):
        found = method.select(*random_tensors(1, 60), layer=layer, num_layers=3)
        assert torch.equal(found.budgets[0], table[layer])


def test_queries_of_the_whole_prompt_are_needed() -> None:
    queries, keys, values = random_tensors(1, 20)
    with pytest.raises(UserError, match="all 20 tokens, or column_sums"):
        methods.create("h2o").select(queries[:, :, -4:], keys, values)


@pytest.mark.parametrize("options", [{"budget": 0}, {"budget": 4, "recent": 5}, {"recent": 0}])
def test_bad_options_are_refused(options: dict) -> None:
    with pytest.raises(UserError, match="recent"):
        methods.create("h2o", **options)


def test_without_decode_eviction_there_is_no_store() -> None:
    _, store = after_prefill(methods.create("h2o", budget=5, decode=False), *random_tensors(1, 20))
    assert store is None
