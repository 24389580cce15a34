"""Fast KVzip (Kim et al., 2026): KVzip's scores foretold by gates of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Needs, Observed
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.fast_kvzip.gates import LowRankGate, load_gates, untrained_gate
from catekv.methods.level_scored import LevelScored
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape, refuse_other_extents

#: Up to which prompts the window is a share of them, that share, and the window of longer ones.
LONG, SHARE, WINDOW = 32000, 0.02, 4096
#: ``exact``: the best, exactly the budget; ``threshold``: what is not below the last of them.
RULES = ("exact", "threshold")


def common_threshold(scores: Tensor, places: Tensor) -> Tensor:
    """The ``places`` [...]-th best of scores [..., entries], with a last dimension of 1: one
    threshold for entries of many heads, also of unequal length, written behind each other. Entries
    as good as it stay too."""
    entries = scores.shape[-1]
    place = (entries - places).clamp(0, entries - 1).to(scores.device)
    ordered = scores.sort(dim=-1).values
    return ordered.gather(-1, place.expand(scores.shape[:-1])[..., None])


@register
@dataclass(frozen=True)
class FastKVzip(LevelScored):
    """Keep what trained low-rank gates expect the model to look at while it repeats its context.

    A gate compares queries and keys of low rank, made of what a layer's attention reads, with base
    keys it has learnt: a score in (0, 1) for every KV head and token. The method works on the
    prompt: generated tokens stay.

    Args:
        predictor: ``.pt`` file of gates, as published (Jang-Hyun/Fast-KVzip of the hub).
        untrained: random gates where ``predictor`` is None; says nothing about quality.
        budget: mean entries kept per head, first and last tokens included.
        total: entries of all layers and heads together, instead of ``budget``.
        level: what the entries that compete belong to: the ``model`` (all layers stay dense until
            the prompt has been read), a ``layer`` or a ``head``.
        sinks: first tokens, always kept.
        window: last tokens, always kept; None: 2 % of the prompt, at least 1, and 4096 from 32,000
            tokens on.
        rule: ``exact``, or ``threshold``: all that is as good as the last entry of the budget.
        seed: of random gates.
    """

    name: ClassVar[str] = "fast_kvzip"
    example = Example({"untrained": True, "budget": 12, "sinks": 2, "window": 4})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = (
        "Fast KVzip: Efficient and Accurate LLM Inference with Gated KV Eviction, 2026 "
        "(arXiv 2601.17668)"
    )
    certain: ClassVar[str] = "first and last"
    certain_options: ClassVar[str] = "sinks or window"

    predictor: str | None = None
    untrained: bool = False
    sinks: int = method_option(4, least=0)
    window: int | None = method_option(None, least=0)
    rule: str = method_option("exact", words=RULES)
    seed: int = method_option(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor is None and not self.untrained:
            raise UserError(
                f"{self.name} needs gates that were trained for the model; give their .pt file as "
                "predictor, or untrained=true to try it"
            )
        always = self.sinks + (self.window or 0)
        if self.total is None and self.budget < always:
            raise UserError(
                f"{self.name}: budget {self.budget} does not hold the {always} first and last "
                "tokens that are always kept; raise the budget or lower sinks or window"
            )
        if self.predictor is not None:
            _ = self.gates  # a file that holds none is refused now

    @cached_property
    def gates(self) -> tuple[LowRankGate, ...]:
        """Those of the file."""
        assert self.predictor is not None
        return load_gates(self.predictor)

    @property
    def needs(self) -> Needs:
        return Needs(attention_inputs=True, all_layers=self.level == "model")

    @property
    def exact_counts(self) -> bool:
        return self.rule == "exact"

    def validate(self, shape: ModelShape) -> None:
        super().validate(shape)
        if self.predictor is not None:
            self._check((shape.layers, shape.kv_heads))

    def _check(self, wanted: tuple[int, ...]) -> None:
        """``UserError`` unless the gates have these numbers of layers, KV heads and inputs."""
        own = (len(self.gates), *self.gates[0].sizes)
        refuse_other_extents(f"the gates in {self.predictor} are for", own, wanted)

    def window_of(self, tokens: int) -> int:
        """Last tokens that are certain in a prompt of ``tokens`` tokens."""
        if self.window is not None:
            return self.window
        return WINDOW if tokens >= LONG else max(1, int(tokens * SHARE))

    def layer_scores(self, observed: Observed) -> Tensor:
        states = observed.attention_inputs
        if states is None:
            raise UserError(
                f"{self.name} needs what attention reads; pass Observed(attention_inputs=...)"
            )
        layers, heads, inputs = observed.num_layers, observed.keys.shape[1], states.shape[-1]
        if self.predictor is None:
            gate = untrained_gate((inputs, heads, observed.group), observed.layer, self.seed)
        else:
            self._check((layers, heads, inputs))
            gate = self.gates[observed.layer]
        scores = gate.scores(states)
        scores[:, :, : self.sinks] = torch.inf
        scores[:, :, max(0, observed.tokens - self.window_of(observed.tokens)) :] = torch.inf
        return scores

    def best(self, scores: Tensor, places: Tensor) -> Tensor:
        if self.exact_counts:
            return super().best(scores, places)
        return scores >= common_threshold(scores, places)
