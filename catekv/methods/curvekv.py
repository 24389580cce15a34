"""CurveKV: budgets that are best for the measured loss curves of all heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from catekv.methods.allocators import Curves
from catekv.methods.example import Example, head_numbers
from catekv.methods.loss_curves import read_curves
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.window_scored import WindowScored
from catekv.models.shape import ModelShape


def example_curves(shape: ModelShape) -> dict[str, Any]:
    """A straight curve for every head, each of another height."""
    losses = [[[number, number / 2, 0.0] for number in row] for row in head_numbers(shape)]
    return {"shares": [0.0, 0.5, 1.0], "losses": losses}


@register
@dataclass(frozen=True)
class CurveKV(WindowScored):
    """Split all tokens by the measured loss curves of the heads, and select as SnapKV does.

    ``catekv heads curves`` measures for every KV head what the model loses when the head keeps a
    share of its entries. Tokens go one by one where they lower the summed loss most, over all
    layers and heads. Curves of the gradient, which the command measures where nothing
    else is said, are what is recommended.

    Args:
        curves: file of ``catekv heads curves``.
        budget: mean tokens per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        window, kernel, pooling, order: as in SnapKV; the curves hold for those that they were
            measured with.
        floor: share of an even budget that no head loses.
    """

    name: ClassVar[str] = "curvekv"
    example = Example(
        lambda shape: {"budget": 10, "curves": example_curves(shape), "window": 4, "kernel": 3}
    )
    paper: ClassVar[str] = "this project: budgets by marginal gain on measured loss curves"

    curves: Any = method_option(
        None,
        convert=read_curves,
        needs="loss curves of the model's heads; give curves=FILE",
    )
    floor: float = method_option(0.0, least=0, most=1)

    @cached_property
    def allocator(self) -> Curves:
        return Curves(self.curves, self.floor)
