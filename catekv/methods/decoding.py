"""Decoding with bounded memory by the scores of another method (kvpress' DecodingPress, 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.allocators import Uniform
from catekv.methods.base import Needs, Observed
from catekv.methods.bounded import Bounded
from catekv.methods.budgeted import Budgeted
from catekv.methods.entry_scored import EntryScored
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.wrapped import scorer_from


def decoding_scorer(value: Any) -> Budgeted:
    """Read the option ``base``: :func:`scorer_from`, of a method that can score while decoding.

    Raises:
        UserError: also for a method that asks for what is only recorded of a prompt.
    """
    method = scorer_from(value)
    needs = method.needs
    unknown = replace(needs, window=0).missing_from(Needs())
    if needs.all_layers:
        unknown.append("all layers")
    if unknown:
        raise UserError(
            f"base {method.name!r} scores by {' and '.join(unknown)}, which is recorded of a "
            "prompt only; use one that scores while decoding: keydiff, knorm, snapkv, tova or "
            "random_attention"
        )
    return method


@register
@dataclass(frozen=True)
class Decoding(Bounded):
    """Keep ``budget`` entries per head while decoding too, by the scores of ``base``.

    Every ``every`` new tokens the entries of each head, those of the prompt and the new ones, are
    scored by the base method and the best stay, with the newest ``buffer`` tokens. The base's
    queries are the newest ones. A prompt longer than the budget is compressed alike.

    The control for all such methods is ``base=random_attention`` with the same ``protect_prompt``;
    as published it comes with ``rule=multiple,every=64,buffer=64,protect_prompt=true``.

    Args:
        base: the method whose scores are used, with options as ``base.window=16``; its budget does
            not count. Of the tokens that it always keeps the window by whose queries it scores
            stays (snapkv and its kin).
    """

    name: ClassVar[str] = "decoding"
    example = Example({"budget": 12, "every": 3, "buffer": 2})
    memory_formula = MemoryFormula("budget", "kept*(e + 4)")
    paper: ClassVar[str] = "DecodingPress of kvpress, 2025; Random Attention, 2026"

    base: Any = method_option("keydiff", convert=decoding_scorer)

    def __post_init__(self) -> None:
        super().__post_init__()
        sinks = int(getattr(self.scorer, "sinks", 0))
        if self.total is None and sinks + self.edges() > self.budget:
            raise UserError(
                f"{self.name}: budget {self.budget} does not hold the {sinks} sinks of the base "
                f"and the newest {self.edges()} tokens ({sinks + self.edges()}); raise the "
                "budget or lower base.sinks"
            )
        if self.scorer.compares_heads and self.allocator != Uniform():
            raise UserError(
                f"{self.name}: base {self.scorer.name!r} needs the same entries in every head; "
                "leave budgets out"
            )

    @property
    def scorer(self) -> Budgeted:
        return decoding_scorer(self.base)

    @property
    def needs(self) -> Needs:
        return self.scorer.needs

    def edges(self) -> int:
        scorer = self.scorer
        window = 0 if isinstance(scorer, EntryScored) else scorer.edges()
        return max(super().edges(), window)

    def for_heads(self, heads: slice) -> Decoding:
        return replace(super().for_heads(heads), base=self.scorer.for_heads(heads))

    def entry_scores(self, observed: Observed) -> Tensor:
        scorer = self.scorer
        if isinstance(scorer, EntryScored):
            return scorer.entry_scores(observed)
        scores = scorer.token_scores(observed)
        # the tokens of the window have none and are certain
        return F.pad(scores, (0, observed.tokens - scores.shape[-1]), value=math.inf)
