"""Clusters of heads with pages in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from catekv.errors import UserError
from catekv.methods.head_groups import group_heads


def test_clusters_and_waste(golden: Any) -> None:
    for case in golden("benchmarks_2026", "head_groups"):
        given, expected = case["inputs"], case["expected"]
        groups = group_heads(torch.tensor(given["scores"]), given["g"], given["scope"])
        assert groups.cluster_of.tolist() == expected["cluster_of"], case["id"]
        assert groups.column_of.tolist() == expected["column_of"], case["id"]
        assert groups.waste == pytest.approx(expected["waste"], abs=1e-7)


def test_equal_scores_follow_layer_and_head() -> None:
    groups = group_heads(torch.ones(2, 4), 2)
    assert groups.cluster_of.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert groups.waste == 0
    assert group_heads(torch.zeros(1, 4), 4).waste == 0


@pytest.mark.parametrize(
    ("scores", "size", "scope", "message"),
    [
        (torch.ones(2, 3), 2, "global", "3 KV heads cannot be divided"),
        (torch.ones(2, 4), 2, "layer", "unknown scope"),
        (torch.tensor([[float("nan"), 1]]), 2, "global", "finite"),
    ],
)
def test_what_cannot_be_grouped(scores: Any, size: int, scope: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        group_heads(scores, size, scope)
