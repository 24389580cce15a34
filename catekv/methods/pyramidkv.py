"""PyramidKV (Cai et al., 2024): SnapKV's selection with fewer tokens from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from catekv.methods.allocators import Budgets, Pyramid
from catekv.methods.formulas.budgets import SHORT_PROMPTS, STEPS
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.window_scored import WindowScored


@register
@dataclass(frozen=True)
class PyramidKV(WindowScored):
    """Split ``budget`` over the layers as an arithmetic sequence and select as SnapKV does.

    The last layer gets ``budget // beta`` tokens outside the window, the first as much above the
    budget; a prompt of at most ``budget + window`` tokens is kept whole.

    Args:
        budget: mean tokens per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        window, kernel, pooling, order: as in SnapKV.
        beta: share of the last layer, at least 1.
        short_prompt: below ``2 * budget`` tokens ``uniform`` budgets (KVCache-Factory) or the
            ``clamped`` pyramid (AdaKV and CoKV).
        step: between neighbouring layers ``integer`` (as released; overshoots the total by a few
            percent) or ``fractional``.
        rescale: make the budgets sum to ``budget`` per layer exactly (on under ``recommended``).
    """

    name: ClassVar[str] = "pyramidkv"
    paper: ClassVar[str] = (
        "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling, 2024"
    )
    recommended: ClassVar[dict[str, Any]] = {"rescale": True}

    window: int = 8
    beta: float = method_option(20, least=1)
    short_prompt: str = method_option("uniform", words=SHORT_PROMPTS)
    step: str = method_option("integer", words=STEPS)
    rescale: bool = False

    @cached_property
    def allocator(self) -> Budgets:
        return Pyramid(self.beta, self.short_prompt, self.step, self.rescale)
