"""StreamingLLM (Xiao et al., 2024): the first tokens and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import ENDLESS, Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.options import method_option
from catekv.methods.registry import register

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.stores.base import DecodeStore


def first_and_last(tokens: int, first: int, last: Tensor) -> Tensor:
    """Mark the first ``first`` and the last ``last`` positions: bool [*last.shape, tokens]."""
    position = torch.arange(tokens, device=last.device)
    return (position < first) | (position >= tokens - last[..., None])


@dataclass(frozen=True)
class FirstAndLast(Budgeted):
    """Base of the methods that look at no content: first tokens and recent ones of every head."""

    or_without: ClassVar[str] = ", or with rolling=False and keys at their positions"

    rolling: bool = False

    @property
    def turns_keys(self) -> bool:
        """Whether the first tokens are given new positions."""
        return False

    @property
    def needs(self) -> Needs:
        return Needs(rotation=self.turns_keys)

    @property
    def own_store(self) -> bool:
        return self.rolling or self.turns_keys

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        if not self.rolling and not self.turns_keys:
            return None
        from catekv.methods.stores.rolling import RollingStore

        batch, _, tokens, _ = observed.keys.shape
        held = [length for _, length in prefix.host_rows]
        return RollingStore(
            prefix,
            self.row_capacities(observed, held) if self.rolling else [None] * len(held),
            self.edges(),
            [tokens] * batch if valid is None else valid.sum(dim=-1).tolist(),
            int(self.counts(ENDLESS, observed.shape).min()) if self.rolling else None,
            observed.required_rotation(self.name) if self.turns_keys else None,
        )

    def select_observed(self, observed: Observed) -> Selection:
        batch, heads, tokens, _ = observed.keys.shape
        keep = first_and_last(tokens, self.edges(), self.counts_of(observed))
        return Selection(keep.expand(batch, heads, tokens).clone())


@register
@dataclass(frozen=True)
class StreamingLLM(FirstAndLast):
    """Keep the first ``sinks`` and the last ``budget - sinks`` prompt tokens of every head.

    Generated tokens are appended, and keys keep their original positions, as in all that compress a
    prompt afterwards. With ``rolling`` every new token drives out the oldest recent one, and with
    ``reposition`` entries are numbered anew, as in the paper's streaming system.
    ``sinks=0`` is a plain sliding window, which breaks fluency. The CateKV paper runs it with 128
    sinks.

    Args:
        budget: mean tokens kept per head, sinks included.
        total: entries of all layers and heads together, sinks included, instead of ``budget``.
        rolling: drop the oldest recent token for each new one, also while decoding.
        sinks: first tokens always kept.
        reposition: give the sinks the positions just before the oldest recent token.
        budgets: how the recent tokens are split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
    """

    name: ClassVar[str] = "streaming_llm"
    example = Example({"budget": 12, "sinks": 2})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = "Efficient Streaming Language Models with Attention Sinks, ICLR 2024"

    edges_option: ClassVar[str] = "sinks"
    edges_in_budget: ClassVar[bool] = True

    sinks: int = method_option(4, least=0)
    reposition: bool = False
    budgets: Any = method_option(None, convert=budgets_from)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < max(1, self.sinks):
            raise UserError(
                f"streaming_llm: budget {self.budget} must be at least 1 and at least sinks "
                f"{self.sinks}"
            )

    @property
    def turns_keys(self) -> bool:
        return self.reposition
