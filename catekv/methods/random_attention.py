"""Random choice (the control of Random Attention, 2026): tokens drawn by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.allocators import Uniform
from catekv.methods.base import Observed
from catekv.methods.entry_scored import EntryScored
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.draws import uniform_numbers
from catekv.methods.options import method_option
from catekv.methods.registry import register

#: Seeds are below this: what lies above it in a draw's seed is the length of the prompt.
_SEEDS = 1 << 31


def with_certain(draws: Tensor, certain: int, counts: Tensor) -> Tensor:
    """Draws [..., heads, entries] with the first ``certain`` entries above all others; one place of
    a head's ``counts`` [heads] is always drawn for."""
    places = torch.arange(draws.shape[-1], device=draws.device)
    first = (counts - 1).clamp(max=certain).to(draws.device)
    return draws.masked_fill(places < first[:, None], torch.inf)


@register
@dataclass(frozen=True)
class RandomAttention(EntryScored):
    """Keep the last ``window`` tokens and ``budget`` of the others drawn by lot, in every head.

    What a method has to beat. Every token before the window gets a uniform number that depends on
    the seed, the length of the prompt, the layer, the KV head and the token's position; the largest
    stay. Prompts of one length are therefore cut at the same places: repeat with other seeds.

    As the base of ``decoding`` the draws are made anew at every event, for each sequence by the
    tokens that it has seen: neither the batch nor the sampling of tokens changes them.

    Args:
        budget: mean tokens kept per head besides the window.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        budgets: how the budget is split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
        window: last tokens that are always kept.
        sinks: first tokens that are certain, among the budget, which must hold more than them.
        seed: of the draws.
    """

    name: ClassVar[str] = "random_attention"
    example = Example({"budget": 8, "window": 4})
    memory_formula = MemoryFormula("budget + window")
    paper: ClassVar[str] = "Random Attention, 2026 (arXiv 2609.03430)"
    edges_option: ClassVar[str] = "window"

    window: int = method_option(64, least=0)
    sinks: int = method_option(0, least=0)
    seed: int = method_option(0, least=0, below=_SEEDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total is None and self.allocator == Uniform():
            self._refuse_sinks_above(self.budget)

    def _refuse_sinks_above(self, count: int) -> None:
        if self.sinks >= count:
            raise UserError(
                f"{self.name}: {count} tokens of a head outside the window do not hold the "
                f"{self.sinks} sinks, which are always kept, and one drawn by lot; raise the "
                "budget or lower sinks"
            )

    def for_heads(self, heads: slice) -> RandomAttention:
        raise NeedsAllHeadsError(
            "random_attention: what is drawn for a head depends on its number in the layer, which "
            "a process of a tensor-parallel group does not know; use one process"
        )

    def entry_scores(self, observed: Observed) -> Tensor:
        batch, heads, tokens, _ = observed.keys.shape
        held = observed.held
        if held is not None:
            # anew at every event: by the tokens seen until then
            seed = self.seed + _SEEDS * held.seen
            draws = uniform_numbers(seed, observed.layer, held.heads[:, None], held.positions)
            return draws.masked_fill(held.positions < self.sinks, torch.inf)
        position = torch.arange(tokens, device=observed.keys.device)
        head = torch.arange(heads, device=observed.keys.device)[:, None]
        draws = uniform_numbers(self.seed + _SEEDS * tokens, observed.layer, head, position)
        counts = self.layer_counts(observed)
        if int(counts.min()) < tokens - self.edges():
            self._refuse_sinks_above(int(counts.min()))
        draws = with_certain(draws, self.sinks, counts)
        return draws.expand(batch, heads, tokens)
