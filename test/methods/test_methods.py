"""Selection of the methods against the reference numbers and their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.head_mask import HeadMask

MASK = HeadMask(torch.tensor([[0, 1], [0, 0], [1, 1]]), {"ratio": 0.4})
SMALL = {
    "budget": 40,
    "window": 6,
    "chunk_size": 4,
    "init_tokens": 8,
    "recent_tokens": 16,
    "guard_tokens": 8,
}
ALL = [
    ("full", {}),
    ("streaming_llm", {"budget": 12, "sinks": 2}),
    ("snapkv", {"budget": 10, "window": 4, "kernel": 3}),
    ("catekv", {"head_mask": MASK, **SMALL}),
    ("catekv", {"head_mask": MASK, "retention": 0.5, "variant": "paper", **SMALL}),
]


def tensors(batch: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, 4, tokens, 8, generator=generator)
    keys, values = torch.randn(2, batch, 2, tokens, 8, generator=generator)
    return queries, keys, values


def kept(selection: methods.Selection, row: int, head: int) -> list[int]:
    assert selection.keep is not None
    return selection.keep[row, head].nonzero().squeeze(-1).tolist()


def test_first_methods_are_available() -> None:
    assert {"catekv", "full", "snapkv", "streaming_llm"} <= set(methods.available())


def test_pipeline_golden_kept_positions(golden) -> None:
    for case in golden("catekv", "pipeline"):
        params = case["inputs"]["params"]
        mask = case["inputs"].get("mask", case["expected"]["mask"])
        method = methods.create(
            "catekv",
            head_mask=HeadMask(torch.tensor(mask)),
            retention=params["eta"],
            budget=params["budget"],
            window=params["n_last"],
            chunk_size=params["chunk"],
            init_tokens=params["init"],
            recent_tokens=params["recent"],
            guard_tokens=params["guard"],
            retention_score=case["inputs"]["options"]["retention_score"],
        )
        for layer, expected in enumerate(case["expected"]["kept"]):
            queries = torch.tensor(case["inputs"]["q_window"][layer])[None]
            keys = torch.tensor(case["inputs"]["k_all"][layer])[None]
            found = method.select(queries, keys, keys, layer=layer, num_layers=len(mask))
            assert [kept(found, 0, head) for head in range(len(expected))] == expected
            assert found.budgets[0].tolist() == case["expected"]["kept_count"][layer]


def test_streaming_golden(golden) -> None:
    for case in golden("baselines", "streaming"):
        given = case["inputs"]
        method = methods.create(
            "streaming_llm", budget=given["sinks"] + given["recent"], sinks=given["sinks"]
        )
        queries, keys, values = tensors(1, given["tokens"])
        assert kept(method.select(queries, keys, values), 0, 1) == case["expected"]["kept"]


def test_snapkv_golden(golden) -> None:
    from catekv.methods.formulas.scoring import window_token_scores

    for case in golden("baselines", "snapkv"):
        given = case["inputs"]
        queries = torch.tensor(given["q_window"])[None]
        keys = torch.tensor(given["keys"])[None]
        pooling = {"avg": "average"}.get(given["pooling"], given["pooling"])
        scores = window_token_scores(
            queries, keys, keys.shape[-1] ** -0.5, given["kernel"], pooling
        )
        torch.testing.assert_close(
            scores[0], torch.tensor(case["expected"]["scores"]), rtol=1e-5, atol=1e-5
        )
        method = methods.create(
            "snapkv",
            budget=given["budget"],
            window=queries.shape[2],
            kernel=given["kernel"],
            pooling=pooling,
        )
        found = method.select(queries, keys, keys)
        assert [kept(found, 0, head) for head in range(2)] == case["expected"]["kept"]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_padded_batch_equals_its_single_prompts(name: str, options: dict) -> None:
    method = methods.create(name, **options)
    queries, keys, values = tensors(2, 97)
    valid = torch.ones(2, 97, dtype=torch.bool)
    valid[1, :13] = False
    together = method.select(queries, keys, values, layer=1, num_layers=3, valid=valid)
    alone = method.select(queries[:1], keys[:1], values[:1], layer=1, num_layers=3)
    short = method.select(
        queries[1:, :, 13:], keys[1:, :, 13:], values[1:, :, 13:], layer=1, num_layers=3
    )
    assert together.keep is not None
    assert alone.keep is not None
    assert short.keep is not None
    assert torch.equal(together.keep[0], alone.keep[0])
    assert torch.equal(together.keep[1, :, 13:], short.keep[0])
    assert not bool(together.keep[1, :, :13].any())


@pytest.mark.parametrize(("name", "options"), ALL)
def test_budget_table_foretells_what_is_kept(name: str, options: dict) -> None:
    method = methods.create(name, **options)
    shape = ModelShape(3, 4, 2, 8)
    for tokens in (1, 5, 30, 49, 50, 97, 200):
        table = method.budget_table(tokens, shape)
        assert table.shape == (3, 2)
        for layer in range(3):
            found = method.select(*tensors(1, tokens), layer=layer, num_layers=3)
            assert torch.equal(found.budgets[0], table[layer]), (tokens, layer)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_stored_entries_are_the_kept_tokens_in_order(name: str, options: dict) -> None:
    queries, keys, values = tensors(2, 70)
    found = methods.create(name, **options).select(queries, keys, values, layer=2, num_layers=3)
    assert found.keep is not None
    for row in range(2):
        for head in range(2):
            positions = kept(found, row, head)
            assert torch.equal(found.keys[row][head], keys[row, head, positions])
            assert torch.equal(found.values[row][head], values[row, head, positions])
            assert int(found.budgets[row, head]) == len(positions)
    assert found.bias is None


@pytest.mark.parametrize(("name", "options"), ALL)
def test_methods_survive_json(name: str, options: dict) -> None:
    method = methods.create(name, **options)
    again = methods.from_dict(json.loads(json.dumps(method.to_dict())))
    assert again == method


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("streaming_llm", {"budget": 97, "sinks": 2}),
        ("snapkv", {"budget": 93, "window": 4}),
        ("catekv", {"head_mask": MASK, **SMALL, "budget": 97, "retention": 0.1}),
        ("catekv", {"head_mask": MASK, **SMALL, "budget": 88, "retention": 0.1}),
    ],
)
def test_capacity_of_the_whole_prompt_drops_nothing(name: str, options: dict) -> None:
    found = methods.create(name, **options).select(*tensors(1, 97), layer=1, num_layers=3)
    assert found.keep is not None
    assert bool(found.keep.all())


def test_equal_heads_keep_equal_tokens_with_and_without_groups() -> None:
    queries, keys, values = tensors(1, 97)
    repeated = keys.repeat_interleave(2, dim=1)
    mask = HeadMask(torch.zeros(1, 2))
    wide = HeadMask(torch.zeros(1, 4))
    same = queries[:, ::2].repeat_interleave(2, dim=1)
    grouped = methods.create("catekv", head_mask=mask, **SMALL).select(same, keys, values)
    single = methods.create("catekv", head_mask=wide, **SMALL).select(same, repeated, repeated)
    assert grouped.keep is not None
    assert single.keep is not None
    assert torch.equal(grouped.keep.repeat_interleave(2, dim=1), single.keep)


def test_tied_chunks_go_to_the_front() -> None:
    queries = torch.zeros(1, 4, 6, 8)
    _, keys, values = tensors(1, 97)
    method = methods.create("catekv", head_mask=HeadMask(torch.zeros(1, 2)), **SMALL)
    assert kept(method.select(queries, keys, values), 0, 0) == [*range(24), *range(72, 97)]


def test_paper_variant_takes_its_options() -> None:
    method = methods.create("catekv", head_mask=MASK, variant="paper")
    assert method.recent_tokens == 16
    assert method.retention_score == "max_of_chunk_sum"
    assert method.retention_range == "all_but_window"
    mixed = methods.create(
        "catekv", head_mask=MASK, variant="paper", retention_range="middle", recent_tokens=32
    )
    assert (mixed.recent_tokens, mixed.retention_range) == (32, "middle")


def test_paper_variant_keeps_the_budget_and_the_window() -> None:
    options = {**SMALL, "budget": 20}
    method = methods.create("catekv", head_mask=MASK, variant="paper", **options)
    found = method.select(*tensors(1, 97), layer=1, num_layers=3)
    # 91 tokens before the window hold 22 chunks of 4; the rest of 3 tokens stays with the window.
    assert found.budgets.tolist() == [[20 + 3 + 6] * 2]
    assert kept(found, 0, 0)[-9:] == list(range(88, 97))


def test_mask_by_path_and_its_default_ratio(tmp_path: Path) -> None:
    for ratio in (0.25, 0.4):
        HeadMask.random((2, 4), ratio).save(tmp_path)
    assert methods.create("catekv", head_mask=tmp_path).ratio == 0.4
    assert methods.create("catekv", head_mask=str(tmp_path), ratio=0.25).mask.ratio == 0.25
    single = tmp_path / "head_type_p25.csv"
    assert methods.create("catekv", head_mask=single).ratio == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_mask": None}, "run_headmask.sh"),
        ({"head_mask": "/nowhere/at/all"}, "no head mask at"),
        ({"ratio": 0.0}, "ratio 0.0 is outside"),
        ({"ratio": 1.5}, "ratio 1.5 is outside"),
        ({"retention": 0.0}, "retention 0.0 is outside"),
        ({"retention": 1.01}, "retention 1.01 is outside"),
        ({"budget": 300, "init_tokens": 64, "recent_tokens": 256}, "smaller than the edges"),
        ({"chunk_size": 0}, "chunk_size 0"),
        ({"window": 0}, "window 0"),
        ({"init_tokens": -1}, "init_tokens -1"),
        ({"variant": "new"}, "unknown variant"),
        ({"retention_score": "mean"}, "unknown retention_score"),
        ({"retention_range": "all"}, "unknown retention_range"),
        ({"eta": 1.0}, "no option 'eta'; valid options: head_mask, ratio, retention"),
    ],
)
def test_bad_catekv_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("catekv", **{"head_mask": MASK, **options})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snapkv", {"budget": -1}, "budget -1 must be at least 0"),
        ("snapkv", {"kernel": 4}, "must be odd"),
        ("snapkv", {"pooling": "sum"}, "use max or average"),
        ("snapkv", {"window": 0}, "at least 1"),
        ("streaming_llm", {"budget": 3}, "at least sinks"),
        ("streaming_llm", {"sinks": -1}, "at least 0"),
        ("snapkv", {"budget": "x"}, "budget='x' has a value of the wrong kind"),
        ("atskv_rocket_kv", {"eviction": "x"}, "eviction 'x' is not a number"),
        ("nothing", {}, "available: "),
    ],
)
def test_bad_baseline_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create(name, **options)


def test_a_mask_of_another_model_is_refused() -> None:
    method = methods.create("catekv", head_mask=MASK, **SMALL)
    with pytest.raises(UserError, match="3 layers x 2 KV heads but the model has 2 layers"):
        method.validate(ModelShape(2, 4, 2, 8))
    with pytest.raises(UserError, match="does not fit the head mask"):
        method.select(*tensors(1, 97), layer=3, num_layers=4)


def test_snapkv_takes_one_budget_per_kv_head() -> None:
    method = methods.create("snapkv", budget=[3, 11], window=4, kernel=1)
    assert method.select(*tensors(2, 60)).budgets.tolist() == [[7, 15]] * 2
    with pytest.raises(UserError, match="x 2 KV heads but the model has 1 layers x 4 KV"):
        method.validate(ModelShape(1, 4, 4, 8))


def test_average_pooling_counts_the_zero_padding() -> None:
    queries, keys, _ = tensors(1, 20)
    from catekv.methods.formulas.scoring import window_token_scores

    plain = window_token_scores(queries[:, :, -4:], keys, 0.3, 1)
    pooled = window_token_scores(queries[:, :, -4:], keys, 0.3, 3, "average")
    torch.testing.assert_close(pooled[..., 0], plain[..., :2].sum(-1) / 3)
