"""StreamingLLM, the sliding window and DuoAttention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from method_tensors import SHAPE, check_method, check_static_table, kept, select

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.duo_attention import streaming_heads
from catekv.methods.head_mask import HeadMask

GATES = [[0.9, 0.1], [0.4, 0.8], [0.2, 1.0]]
ALL = [
    ("streaming_llm", {"budget": 12, "sinks": 2}),
    ("sliding_window", {"budget": 12}),
    ("duo_attention", {"pattern": GATES, "sinks": 3, "recent": 9}),
    ("duo_attention", {"pattern": GATES, "streaming_share": 1.0, "sinks": 0, "recent": 9}),
]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_padding_short_prompts_plain_values_and_tables(name: str, options: dict) -> None:
    method = methods.create(name, **options)
    check_method(method)
    check_static_table(method)


def test_streaming_worked_example() -> None:
    method = methods.create("streaming_llm", budget=5, sinks=2)
    assert kept(select(method, 1, 9), 0, 1) == [0, 1, 6, 7, 8]


def test_a_sliding_window_keeps_no_sinks() -> None:
    assert kept(select(methods.create("sliding_window", budget=3), 1, 9), 0, 0) == [6, 7, 8]


def test_duo_worked_example() -> None:
    gates = torch.tensor([0.9, 0.1, 0.4, 0.8, 0.2, 0.05, 0.7, 0.3])
    assert streaming_heads(gates, 0.5).nonzero().flatten().tolist() == [1, 4, 5, 7]
    # 2.8 of 8 heads: rounded
    assert streaming_heads(gates, 0.35).nonzero().flatten().tolist() == [1, 4, 5]
    method = methods.create("duo_attention", pattern=gates[None], sinks=128, recent=256)
    table = method.budget_table(8192, ModelShape(1, 8, 8, 8))
    assert float(table.double().mean()) / 8192 == 0.5234375


def test_duo_golden(golden) -> None:
    for case in golden("baselines", "duo"):
        given, expected = case["inputs"], case["expected"]
        gates = torch.tensor(given["gates"])[None]
        method = methods.create(
            "duo_attention",
            pattern=gates,
            streaming_share=given["streaming_share"],
            sinks=given["sink"],
            recent=given["recent"],
        )
        assert method.streaming[0].nonzero().flatten().tolist() == expected["streaming"]
        heads = gates.shape[1]
        table = method.budget_table(given["tokens"], ModelShape(1, heads, heads, 8))
        assert float(table.double().mean()) / given["tokens"] == expected["kv_share"]


def test_duo_ties_keep_the_first_heads_whole_and_gates_are_clamped() -> None:
    gates = torch.tensor([1.0, 1.3, 1.0, 0.5, 1.0, -0.2])
    assert streaming_heads(gates, 0.5).tolist() == [False, False, False, True, True, True]


def test_duo_streaming_heads_keep_sinks_and_recent_tokens() -> None:
    method = methods.create("duo_attention", pattern=GATES, sinks=2, recent=3)
    assert method.streaming.tolist() == [[False, True], [True, False], [True, False]]
    found = select(method, 1, 40, layer=1)
    assert kept(found, 0, 0) == [0, 1, 37, 38, 39]
    assert kept(found, 0, 1) == list(range(40))


def test_duo_reads_patterns_and_masks(tmp_path: Path) -> None:
    pattern = tmp_path / "full_attention_heads.tsv"
    pattern.write_text("0.9\t0.1\n0.4\t0.8\n0.2\t1.0\n")
    for source in (pattern, str(tmp_path), GATES, torch.tensor(GATES)):
        method = methods.create("duo_attention", pattern=source)
        assert method.streaming.tolist() == [[False, True], [True, False], [True, False]]
    # a head mask says itself which heads stream, whatever the default share
    mask = HeadMask.load(pattern, ratio=0.3)
    assert mask.adaptive.sum() == 2
    csv = tmp_path / "mask.csv"
    csv.write_text("1,0\n0,0\n0,1\n")
    for source in (mask, mask.to_dict(), csv):
        method = methods.create("duo_attention", pattern=source)
        assert torch.equal(method.streaming, ~mask.adaptive)


def test_duo_part_of_the_heads() -> None:
    method = methods.create("duo_attention", pattern=GATES)
    assert method.for_heads(slice(1, 2)).streaming.tolist() == [[True], [False], [False]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("duo_attention", {}, "give pattern=FILE"),
        ("duo_attention", {"pattern": GATES, "streaming_share": 1.5}, r"outside \[0, 1\]"),
        ("duo_attention", {"pattern": GATES, "sinks": -1}, "sinks -1 must be at least 0"),
        ("duo_attention", {"pattern": GATES, "sinks": 0, "recent": 0}, "at least 1 sink or recent"),
        ("duo_attention", {"pattern": "/nowhere.tsv"}, "cannot be read as numbers"),
        ("sliding_window", {"budget": 0}, "budget 0 must be at least 1"),
        ("streaming_llm", {"sinks": 2000}, "at least sinks 2000"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create(name, **options)


def test_a_pattern_of_another_model_is_refused() -> None:
    method = methods.create("duo_attention", pattern=GATES)
    with pytest.raises(UserError, match="3 layers x 2 KV heads but the model has 4 layers x 2 KV"):
        method.validate(ModelShape(4, 4, 2, 8))
    assert method.validate(SHAPE) is None
