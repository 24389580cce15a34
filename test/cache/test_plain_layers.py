"""Layers that transformers keeps: rows of a batch, and copies that share nothing written into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catekv.cache.plain_layers import copied, select_rows


class Gathering:
    """A layer with blocks in a dictionary, of which its own selection of rows forgets one."""

    def __init__(self) -> None:
        self.keys = torch.arange(12.0).view(3, 1, 2, 2)
        self.blocks: dict[str, Any] = {
            "known": self.keys[:, 0],
            "forgotten": 10 * self.keys[:, 0],
            "none": None,
        }
        self.count = {"known": 2}

    def reorder_cache(self, rows: Tensor) -> None:
        self.keys = self.keys[rows]
        self.blocks["known"] = self.blocks["known"][rows]


def test_rows_are_selected_of_what_a_layer_forgets_and_once_of_what_it_does_not() -> None:
    layer, whole = Gathering(), Gathering()
    rows = torch.tensor([2, 0])
    select_rows(layer, rows)
    assert torch.equal(layer.keys, whole.keys[rows])
    for name in ("known", "forgotten"):
        assert torch.equal(layer.blocks[name], whole.blocks[name][rows])
    assert layer.blocks["none"] is None


def test_a_copy_gathers_for_itself() -> None:
    layer = Gathering()
    other = copied(layer)
    other.blocks["known"] = None
    other.count["known"] = 3
    assert layer.blocks["known"] is not None
    assert layer.count["known"] == 2
