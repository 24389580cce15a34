"""PyramidInfer: sizes, scores and shrinking sets."""

from __future__ import annotations

import copy

import pytest
import torch
from slot_rows import DIM, GROUP, HEADS, random_tensors

from catekv import methods
from catekv.errors import UserError
from catekv.kernels.packing import pack
from catekv.methods import ModelShape, Observed, pyramidinfer
from catekv.methods.pyramidinfer import (
    context_scores,
    context_sizes,
    decode_block_keep,
    decode_ratios,
    keep_ratios,
    query_weights,
    recent_tokens,
)

LAYERS = 4
SMALL = {"least_ratio": 0.5, "min_context": 8, "sinks": 2}


def observe(tokens: int, batch: int = 1, window: int = 512) -> list[Observed]:
    layers = []
    for index in range(LAYERS):
        queries, keys, values = random_tensors(batch, tokens, seed=index)
        window_queries = queries[:, :, max(0, tokens - window) :]
        layers.append(Observed(window_queries, keys, values, 0.5, index, LAYERS))
    return layers


def test_worked_example_of_the_sizes() -> None:
    ratios = keep_ratios(32)
    assert (ratios[0], ratios[16], ratios[31]) == pytest.approx((1.0, 0.95, 0.90024), abs=1e-5)
    sizes = context_sizes(1000, 32)
    assert recent_tokens(1000) == 201
    assert (sizes[0], sizes[-1]) == (799, 154)


def test_golden_sizes(golden) -> None:
    for case in golden("baselines", "pyramidinfer"):
        given, expected = case["inputs"], case["expected"]
        ratios = keep_ratios(given["layers"], given["p_min"])
        assert ratios == pytest.approx(expected["keep_ratio"], abs=1e-5)
        recent = recent_tokens(given["tokens"], given["recent_ratio"])
        assert recent == expected["recent"]
        sizes = context_sizes(
            given["tokens"],
            given["layers"],
            given["p_min"],
            given["recent_ratio"],
            given["min_context"],
        )
        assert [size + recent for size in sizes[:-1]] == expected["stored_per_layer"]
        assert sizes[-1] == expected["context_after_last"]
        method = methods.create("pyramidinfer_kv")
        table = method.budget_table(given["tokens"], ModelShape(given["layers"], 4, 2, 8))
        assert table[:, 1].tolist() == expected["stored_per_layer"]


def test_few_tokens_are_not_reduced_further() -> None:
    assert context_sizes(80, 32) == [63] * 33
    assert min(context_sizes(2000, 60)) > 64


def test_shares_while_decoding() -> None:
    ratios = decode_ratios(32)
    assert (ratios[0], ratios[16]) == pytest.approx((1.0, 0.55))
    assert decode_block_keep(0, 32) == 14
    assert decode_block_keep(16, 32) == 7
    assert decode_block_keep(31, 32) == 1


def test_newer_queries_weigh_more() -> None:
    torch.testing.assert_close(query_weights(3), torch.tensor([1.0, 1.1, 1.2]))


def test_scores_follow_the_definition(monkeypatch) -> None:
    monkeypatch.setattr(pyramidinfer, "BLOCK_BYTES", 300)
    queries, keys, _ = random_tensors(1, 30)
    positions = torch.tensor([0, 3, 4, 9, 11, 20, 24, 25, 26, 27, 28, 29])
    found = context_scores(queries[0, :, -6:] * 0.5, keys[0, :, positions], positions, 30)
    expected = torch.zeros(12)
    for head in range(HEADS * GROUP):
        for order, asked in enumerate(range(24, 30)):
            logits = keys[0, head // GROUP, positions] @ queries[0, head, asked] * 0.5
            weights = logits.masked_fill(positions > asked, -torch.inf).softmax(dim=0)
            expected += weights * (1.0 + 0.2 * order / 5) / 6 / (HEADS * GROUP)
    torch.testing.assert_close(found, expected)


def test_sets_shrink_from_layer_to_layer() -> None:
    method = methods.create("pyramidinfer_kv", **SMALL)
    layers = observe(100, batch=2)
    found = method.select_layers(layers)
    table = method.budget_table(100, ModelShape(LAYERS, HEADS * GROUP, HEADS, DIM))
    assert table[:, 0].tolist() == sorted(table[:, 0].tolist(), reverse=True)
    assert int(table[0, 0]) == 100
    assert int(table[-1, 0]) == 75
    for index, selection in enumerate(found):
        assert selection.budgets.tolist() == [table[index].tolist()] * 2
        keep = selection.keep
        # the same for all heads, the first and the recent tokens among them
        assert torch.equal(keep[:, 0], keep[:, 1])
        assert bool(keep[..., :2].all())
        assert bool(keep[..., -21:].all())
        if index:
            assert not bool((keep & ~found[index - 1].keep).any())


def test_a_layer_chooses_by_its_own_attention_among_what_it_holds() -> None:
    method = methods.create("pyramidinfer_kv", **SMALL)
    layers = observe(100)
    found = method.select_layers(layers)
    held = found[2].keep[0, 0].nonzero().flatten()
    scores = context_scores(
        layers[2].queries[0, :, -21:] * 0.5, layers[2].keys[0, :, held], held, 100
    )
    context = scores[: len(held) - 21].clone()
    context[:2] = torch.inf
    kept = int(found[3].budgets[0, 0]) - 21
    best = held[context.argsort(descending=True)[:kept]].sort().values.tolist()
    assert found[3].keep[0, 0].nonzero().flatten().tolist() == [*best, *range(79, 100)]


def test_padding_and_short_prompts() -> None:
    method = methods.create("pyramidinfer_kv", **SMALL)
    valid = torch.ones(2, 90, dtype=torch.bool)
    valid[1, :25] = False
    layers = observe(90, batch=2)
    together = method.select_padded(layers, valid)
    alone = method.select_layers(
        [
            Observed(
                x.queries[1:, :, 25:], x.keys[1:, :, 25:], x.values[1:, :, 25:], 0.5, i, LAYERS
            )
            for i, x in enumerate(layers)
        ]
    )
    for padded, single in zip(together, alone, strict=True):
        assert torch.equal(padded.keep[1:, :, 25:], single.keep)
        assert not bool(padded.keep[1, :, :25].any())
    for selection in method.select_layers(observe(9)):
        assert bool(selection.keep.all())


def test_one_layer_alone_keeps_its_share() -> None:
    method = methods.create("pyramidinfer_kv", **SMALL)
    table = method.budget_table(100, ModelShape(LAYERS, HEADS * GROUP, HEADS, DIM))
    found = method.select_observed(observe(100)[3])
    assert found.budgets.tolist() == [table[3].tolist()]


def opened(method, layers, index, valid=None):
    """The store of one layer after prefill, and the positions that it holds per sequence."""
    selection = method.select_padded(layers, valid)[index]
    layer = layers[index]
    prefix = pack(layer.keys, layer.values, selection.keep)
    return method.open_store(prefix, layer, valid, selection)


@pytest.mark.parametrize("index", [0, 2])
def test_blocks_that_leave_the_recent_window_are_chosen_among(index: int) -> None:
    prompt, steps = 40, 23
    method = methods.create("pyramidinfer_kv", **SMALL, block=5, block_share=0.8)
    whole = [random_tensors(1, prompt + steps, seed=i) for i in range(LAYERS)]
    layers = [
        Observed(q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], 0.5, i, LAYERS)
        for i, (q, k, v) in enumerate(whole)
    ]
    store = opened(method, layers, index)
    queries, keys, values = whole[index]
    keep = {0: 4, 2: 2}[index]  # of 5 * 0.8 * (1, 0.55)
    assert store.rule.keep == decode_block_keep(index, LAYERS, 5, 0.8) == keep
    recent = recent_tokens(prompt)  # 9
    expected = store.sequences[0].positions.tolist()
    tail, reviewed = [], len(expected) - recent
    for token in range(prompt, prompt + steps):
        tail.append(token)
        part = [x[:, :, tail] for x in (keys, values)]
        taken = store.absorb(queries[:, :, token : token + 1], *part, 0.5, None)
        assert taken == (5 if len(tail) == 5 else 0)
        if taken:
            expected, tail = expected + tail, []
            # five more are older than the recent ones now
            positions = torch.tensor(expected)
            scores = context_scores(
                queries[0, :, token + 1 - recent : token + 1] * 0.5,
                keys[0, :, positions], positions, token + 1,
            )  # fmt: skip
            block = expected[reviewed : reviewed + 5]
            best = scores[reviewed : reviewed + 5].argsort(descending=True)[:keep].tolist()
            left = sorted(block[i] for i in best)
            expected = expected[:reviewed] + left + expected[reviewed + 5 :]
            reviewed += keep
            assert len(expected) - reviewed == recent
        prefix, _ = store.read(queries, 0.5)
        for head in range(HEADS):
            assert torch.equal(prefix.row(0, head)[0], keys[0, head, expected])
            assert torch.equal(prefix.row(0, head)[1], values[0, head, expected])
    assert store.lengths().tolist() == [[len(expected)] * HEADS]


def test_blocks_of_padded_batches_copies_and_beams() -> None:
    method = methods.create("pyramidinfer_kv", **SMALL, block=4)
    valid = torch.ones(2, 60, dtype=torch.bool)
    valid[1, :11] = False
    valid[1, 45:47] = False
    whole = [random_tensors(2, 60, seed=i) for i in range(LAYERS)]

    def layers(rows: list[int], columns: torch.Tensor) -> list[Observed]:
        return [
            Observed(*(x[rows][:, :, columns] for x in three), 0.5, i, LAYERS)
            for i, three in enumerate(whole)
        ]

    both = opened(method, layers([0, 1], torch.arange(40)), 1, valid[:, :40])
    single = [
        opened(method, layers([row], valid[row, :40].nonzero().flatten()), 1) for row in (0, 1)
    ]
    queries, keys, values = whole[1]
    fork = copy.deepcopy(both)
    part = slice(40, 60)
    assert both.absorb(*(x[:, :, part] for x in (queries, keys, values)), 0.5, valid[:, part]) == 20
    for row, alone in enumerate(single):
        columns = part.start + valid[row, part].nonzero().flatten()
        tensors = (x[row : row + 1][:, :, columns] for x in (queries, keys, values))
        assert alone.absorb(*tensors, 0.5, None) == len(columns)
        assert both.sequences[row].positions.tolist() == alone.sequences[0].positions.tolist()
        assert torch.equal(both.prefix.row(row, 1)[0], alone.prefix.row(0, 1)[0])
    assert fork.lengths().tolist() != both.lengths().tolist()
    beams = both.select_rows([1, 1])
    assert beams.lengths().tolist() == [both.lengths()[1].tolist()] * 2


def test_new_tokens_are_appended_if_decoding_is_to_drop_nothing() -> None:
    method = methods.create("pyramidinfer_kv", **SMALL, decode=False)
    assert opened(method, observe(50), 1) is None


def test_the_system_with_shorter_hidden_states_is_refused() -> None:
    with pytest.raises(UserError, match="use pyramidinfer_kv"):
        methods.create("pyramidinfer")
    assert "pyramidinfer" in methods.available()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_ratio": 1.1}, "outside"),
        ({"least_ratio": "x"}, "least_ratio 'x' is not a number"),
        ({"block": 1.5}, "block 1.5 is not a whole number"),
        ({"recent": -0.1}, "outside"),
        ({"window": 0}, "at least 1"),
        ({"block": 0}, "at least 1"),
        ({"block_share": 1.5}, "outside"),
        ({"min_context": 2}, "does not hold the 4 sinks"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("pyramidinfer_kv", **options)
