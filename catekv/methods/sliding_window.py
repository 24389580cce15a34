"""A sliding window: the most recent tokens only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from catekv.methods.allocators import budgets_from
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.streaming_llm import FirstAndLast


@register
@dataclass(frozen=True)
class SlidingWindow(FirstAndLast):
    """Keep the last ``budget`` prompt tokens of every head.

    Without the first tokens, which models put much of their attention on, fluency breaks: that is
    what this baseline shows. Tokens generated later are appended and stay.

    Args:
        budget: mean tokens kept per head.
        total: entries of all layers and heads together, instead of ``budget``.
        rolling: drop the oldest token for each new one, also while decoding.
        budgets: how they are split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
    """

    name: ClassVar[str] = "sliding_window"
    example = Example({"budget": 12})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = "the window baseline of Efficient Streaming Language Models, ICLR 2024"

    budget: int = method_option(1024, least=1)
    budgets: Any = method_option(None, convert=budgets_from)
