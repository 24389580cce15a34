"""KeyDiff and key norms: methods that choose tokens by their keys alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.methods.keydiff import key_differences
from catekv.methods.knorm import key_norms


def selected(name: str, keys: Tensor, **options: Any) -> list[list[int]]:
    """Kept positions of every head of keys [heads, tokens, dim]."""
    states = keys[None]
    chosen = methods.create(name, **options).select(states, states, states)
    return [row.nonzero().flatten().tolist() for row in chosen.tokens[0]]


def test_keydiff_golden(golden) -> None:
    for case in golden("methods_2026", "keydiff"):
        given, expected = case["inputs"], case["expected"]
        keys = torch.tensor(given["keys"])
        scores = key_differences(F.normalize(keys, dim=-1))
        torch.testing.assert_close(scores, torch.tensor(expected["scores"]), atol=1e-5, rtol=1e-5)
        kept = selected("keydiff", keys, budget=given["keep"], block=given["block"])
        assert kept == expected["kept"]


def test_knorm_golden(golden) -> None:
    for case in golden("methods_2026", "knorm"):
        keys = torch.tensor(case["inputs"]["keys"])
        norms = torch.tensor(case["expected"]["norms"])
        torch.testing.assert_close(key_norms(keys[None])[0], norms, atol=1e-5, rtol=1e-5)
        assert selected("knorm", keys, budget=case["inputs"]["keep"]) == case["expected"]["kept"]


def test_equal_keys_leave_the_lower_position() -> None:
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [2.0, 0.0]]])
    for block in (0, 1, 2, 128):
        assert 2 in selected("keydiff", keys, budget=2, block=block)[0]
    assert selected("keydiff", keys, budget=2, block=0) == [[0, 2]]
    assert selected("knorm", torch.ones(1, 5, 3), budget=2) == [[0, 1]]


@pytest.mark.parametrize("name", ["keydiff", "knorm"])
def test_half_precision_is_compared_in_single_precision(name: str) -> None:
    keys = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert selected(name, keys, budget=50) == selected(name, keys.float(), budget=50)


@pytest.mark.parametrize("block", [0, 1, 3, 128])
def test_keydiff_with_a_budget_for_every_head(block: int) -> None:
    keys = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(1))
    table = {"budgets": [[3, 9]]}
    kept = selected("keydiff", keys, block=block, **table)
    assert [len(row) for row in kept] == [3, 9]
    for head, count in enumerate((3, 9)):
        alone = selected("keydiff", keys[head : head + 1], budget=count, block=block)
        assert kept[head] == alone[0]


@pytest.mark.parametrize("block", [1, 4, 7, 30, 500])
def test_keydiff_compares_what_is_held_with_what_joins(block: int) -> None:
    keys = torch.randn(1, 40, 6, generator=torch.Generator().manual_seed(5))
    units, held = F.normalize(keys[0], dim=-1), list(range(9))
    for start in range(9, 40, block):
        held += range(start, min(40, start + block))
        scores = key_differences(units[held])
        held = sorted(held[place] for place in scores.sort(descending=True).indices[:9].tolist())
    assert selected("keydiff", keys, budget=9, block=block) == [held]


def test_knorm_keeps_its_window_besides() -> None:
    keys = torch.arange(1.0, 9.0).view(1, 8, 1)
    assert selected("knorm", keys, budget=2, window=3) == [[0, 1, 5, 6, 7]]
    assert selected("knorm", keys, budget=2, window=99) == [list(range(8))]


@pytest.mark.parametrize("name", ["keydiff", "knorm"])
def test_a_head_without_tokens_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="budget"):
        methods.create(name, budget=0)
