"""Edges and window of CateKV that nobody gave: those of the mask, else by the paper's rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv import methods
from catekv.calibration import CVConfig
from catekv.errors import UserError
from catekv.evaluation.columns import defaults
from catekv.evaluation.columns.edges import edge_notes
from catekv.evaluation.columns.specification import parse_masks
from catekv.methods import ModelShape
from catekv.methods.catekv import CateKV
from catekv.methods.head_mask import HeadMask

HEADS = torch.tensor([[0, 1], [0, 0], [1, 1]])
RECIPE = {"kind": "vote", "window": 32, "init_tokens": 16, "recent_tokens": 32, "guard_tokens": 16}
MADE = HeadMask(HEADS, {"ratio": 0.4, "recipe": RECIPE}, order=(1, 4, 5, 0, 2, 3))
SHAPE = ModelShape(layers=3, query_heads=2, kv_heads=2, head_dim=8)


def made(**options: Any) -> CateKV:
    method = methods.create("catekv", **{"head_mask": HeadMask(HEADS), **options})
    assert isinstance(method, CateKV)
    return method


def edges(method: CateKV) -> tuple[Any, ...]:
    return method.window, method.init_tokens, method.recent_tokens, method.guard_tokens


@pytest.mark.parametrize(
    ("budget", "variant", "expected"),
    [
        (2048, "official", (64, 64, 256, 32)),
        (2048, "paper", (64, 64, 16, 32)),
        (1024, "official", (64, 32, 8, 32)),
        (512, "paper", (64, 16, 4, 32)),
        (192, "official", (64, 6, 1, 32)),
        (1, "official", (64, 0, 0, 32)),
    ],
)
def test_without_a_recipe_they_follow_the_budget(
    budget: int, variant: str, expected: tuple[int, ...]
) -> None:
    assert edges(made(budget=budget, variant=variant)) == expected
    config = CVConfig(budget=budget, variant=variant)
    assert (config.window, *config.edges, config.guard_tokens) == expected


def test_a_mask_brings_those_it_was_made_with() -> None:
    for mask in (MADE, MADE.reversed(), MADE.complement(), MADE.reversed().complement()):
        assert edges(made(head_mask=mask, budget=192)) == (32, 16, 32, 16)
        assert edges(made(head_mask=mask)) == (32, 16, 32, 16)
    assert edges(made(head_mask=MADE.to_dict(), budget=192)) == (32, 16, 32, 16)


def test_what_is_given_holds() -> None:
    given = made(head_mask=MADE, budget=192, init_tokens=8, window=4)
    assert edges(given) == (4, 8, 32, 16)
    assert edges(made(budget=192, recent_tokens="24")) == (64, 6, 24, 32)
    assert edges(made(head_mask=MADE, budget=192, recent_tokens="b/128")) == (32, 16, 1, 16)


def test_edges_of_a_mask_that_the_budget_does_not_hold_follow_the_budget() -> None:
    assert edges(made(head_mask=MADE, budget=48)) == (32, 16, 32, 16)
    assert edges(made(head_mask=MADE, budget=40)) == (32, 1, 0, 16)
    with pytest.raises(UserError, match=r"the edges it includes \(41 initial \+ 0 recent tokens\)"):
        made(head_mask=MADE, budget=40, init_tokens=41)


def test_they_stay_when_another_option_is_replaced() -> None:
    method = made(head_mask=MADE, budget=192)
    assert edges(replace(method, budget=96)) == edges(method)
    assert edges(method.for_heads(slice(0, 1))) == edges(method)


def test_a_small_budget_alone_keeps_what_it_says() -> None:
    table = made(budget=192).budget_table(1536, SHAPE)
    # 6 initial and 1 recent token leave 23 chunks of 8; 33 tokens lie behind the last whole chunk
    consistent = table[~HEADS.bool()]
    assert consistent.unique().tolist() == [1536 - (1536 - 32 - 7) // 8 * 8 + 23 * 8]


def test_masks_of_one_run_share_the_edges_of_the_first(tmp_path: Path) -> None:
    MADE.save(tmp_path / "made")
    HeadMask(HEADS).save(tmp_path / "plain")
    texts = [f"a={tmp_path / 'made'}", f"b={tmp_path / 'plain'}", "random:3"]
    for mask in parse_masks(texts, SHAPE, None).values():
        assert edges(made(head_mask=mask, budget=192)) == (32, 16, 32, 16)
    alone = parse_masks(["random:3"], SHAPE, 0.5, defaults.mask_edges(embedded=True))
    assert edges(made(head_mask=alone["random-3"], budget=192)) == (32, 16, 32, 32)
    (unknown,) = parse_masks(["random:3"], SHAPE, 0.5).values()
    assert unknown.edges == {}


@pytest.mark.parametrize("value", ["many", -1, 2.5, True, None])
def test_a_recipe_that_names_no_number_is_refused(value: object) -> None:
    mask = HeadMask(HEADS, {"recipe": {"init_tokens": value}})
    with pytest.raises(UserError, match=r"recipe says init_tokens .*, which is no number"):
        made(head_mask=mask)


def test_notes_name_what_was_used_once_for_all_columns_that_share_it() -> None:
    columns = {
        "a": made(head_mask=MADE, budget=192).to_dict(),
        "b": made(head_mask=MADE.reversed(), budget=192).to_dict(),
        "c": made(budget=512, variant="paper").to_dict(),
        "snapkv": methods.create("snapkv").to_dict(),
        "catekv of another release": {"name": "catekv"},
    }
    assert edge_notes(columns) == [
        "a, b: budget 192, of it the first 16 and the last 32 tokens; window 32.",
        "c: budget 512; window 64.",
    ]
