"""Measured loss curves: what a head's output loses at every share of its entries.

``catekv heads curves`` measures them; :class:`LossCurves` splits budgets by them.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_arrays
from catekv.methods.formulas.budgets import largest_remainder
from catekv.methods.formulas.water_filling import Segments

REMEDY = "measure the curves again with `catekv heads curves`"


@dataclass(frozen=True)
class LossCurves:
    """Loss of every head at every kept share.

    Attributes:
        shares: ascending from 0 to 1, of the entries that are not always kept.
        losses: at least 0 and finite, [layers][kv_heads][shares]; 0 at share 1, and throughout in
            layers that are not compressed.
        made_for: ``config_hash`` of the model; None where nobody knows.
    """

    shares: tuple[float, ...]
    losses: tuple[tuple[tuple[float, ...], ...], ...]
    made_for: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        table = np.array(self.losses)
        if table.ndim != 3 or table.shape[2] != len(self.shares) or not table.size:
            raise UserError(
                f"loss curves of the shape {list(table.shape)} at {len(self.shares)} shares; they "
                f"are [layers, KV heads, shares]; {REMEDY}"
            )
        rising = all(a < b for a, b in itertools.pairwise(self.shares))
        if not rising or self.shares[0] != 0 or self.shares[-1] != 1:
            raise UserError(f"shares of loss curves ascend from 0 to 1; {REMEDY}")
        if not np.isfinite(table).all() or (table < 0).any():
            raise UserError(f"a loss is negative or no finite number; {REMEDY}")

    @property
    def layers(self) -> int:
        return len(self.losses)

    @property
    def kv_heads(self) -> int:
        return len(self.losses[0])

    @cached_property
    def measured(self) -> Tensor:
        """Which layers have curves: bool [layers]."""
        return torch.tensor(self.losses).flatten(1).any(dim=1)

    @cached_property
    def segments(self) -> Segments:
        """The convex hulls of the measured layers' curves, ready to be filled."""
        layers = [self.losses[layer] for layer in self.measured.nonzero().flatten().tolist()]
        return Segments.of(self.shares, layers)

    def split(self, total: int, room: int, floor: float = 0.0) -> Tensor:
        """Split ``total`` entries, exactly: int64 [layers, kv_heads].

        Layers without curves, which are not compressed, are counted as having an even share.

        Args:
            total: at most ``room`` for each head.
            room: the most one head can keep.
            floor: share of an even budget that every head keeps.
        """
        table = torch.empty(self.layers, self.kv_heads, dtype=torch.int64)
        other = table[~self.measured]
        even = largest_remainder(
            torch.ones_like(other), round(total * other.numel() / table.numel())
        )
        table[~self.measured] = even
        if bool(self.measured.any()):
            least = int(floor * total / table.numel())
            table[self.measured] = self.segments.fill(total - int(even.sum()), room, least)
        return table

    def to_dict(self) -> dict[str, Any]:
        losses = [[list(curve) for curve in layer] for layer in self.losses]
        return {"shares": list(self.shares), "losses": losses, "made_for": self.made_for}


def read_curves(source: Any) -> LossCurves:
    """Loss curves from the file of ``catekv heads curves``, or from their ``to_dict()``.

    Raises:
        UserError: unreadable, or no curves.
    """
    if isinstance(source, LossCurves):
        return source
    shares: Any
    losses: Any
    if isinstance(source, dict):
        shares, losses = source.get("shares"), source.get("losses")
        made_for = source.get("made_for")
    else:
        arrays = read_arrays(Path(source))
        if not {"shares", "losses", "recipe"} <= arrays.keys():
            raise UserError(f"{source} holds no loss curves; give a file of `catekv heads curves`")
        shares, losses = arrays["shares"].tolist(), arrays["losses"].tolist()
        try:
            made_for = json.loads(str(arrays["recipe"])).get("config_hash")
        except (ValueError, AttributeError) as error:
            raise UserError(f"the recipe of {source} cannot be read: {error}; {REMEDY}") from error
    try:
        curves = tuple(tuple(tuple(map(float, curve)) for curve in layer) for layer in losses)
        return LossCurves(tuple(map(float, shares)), curves, made_for)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"loss curves are rows of numbers of equal length: {error}; {REMEDY}"
        ) from error
