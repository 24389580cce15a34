"""The methods of 2024 to 2026 that score tokens, against their reference numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catekv import methods
from catekv.methods import Observed


def kept(rows: Tensor) -> list[list[int]]:
    """Kept positions of every head of a mask [1, heads, tokens]."""
    return [row.nonzero().flatten().tolist() for row in rows[0]]


def near(actual: Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=tolerance, rtol=tolerance)


def test_tova_golden(golden) -> None:
    for case in golden("methods_2026", "tova"):
        attention = torch.tensor(case["inputs"]["attention"])
        # with unit vectors as keys these queries give the attention that the case has
        queries, keys = attention.log()[None, :, None], torch.eye(attention.shape[1])[None, None]
        protect = case["inputs"]["protect_last"]
        method = methods.create("tova", budget=case["inputs"]["keep"], protect_last=protect)
        near(
            method.entry_scores(Observed(queries, keys, keys, 1.0))[0, 0],
            case["expected"]["scores"],
        )
        chosen = method.select(queries, keys.expand(-1, 2, -1, -1), keys, scaling=1.0)
        assert kept(chosen.tokens) == [case["expected"]["kept"]] * 2
