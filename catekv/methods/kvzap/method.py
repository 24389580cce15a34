"""KVzap (NVIDIA, 2026): KVzip's scores foretold from what attention reads, without a repetition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.kvzap.gates import Gates, untrained_gates
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape, refuse_other_extents


@register
@dataclass(frozen=True)
class KVzap(Budgeted):
    """Keep the last ``window`` tokens and what a trained gate scores above ``threshold``, or best.

    Gates read what a layer's attention reads and foretell the logarithm of the KVzip+ score of
    every KV head. By the threshold the prompt's content decides how much stays; with a budget (or
    ``total``, or ``keep``) the heads of a layer compete for it. The method works on the prompt:
    generated tokens stay.

    Args:
        predictor: folder of gates, published ones (nvidia/KVzap-... of the hub) or those of
            ``catekv kvzap train``.
        untrained: random gates where ``predictor`` is None; says nothing about quality.
        threshold: tokens that score less are evicted.
        budget: mean tokens kept per head besides the window; 0: the threshold decides.
        total: entries of all layers and heads together, windows included, instead of ``budget``.
        window: last tokens, always kept.
        sinks: first tokens, always kept.
        floor: tokens besides the window that every head keeps at least where the threshold decides.
        seed: of random gates.
    """

    name: ClassVar[str] = "kvzap"
    example = Example({"untrained": True, "budget": 10, "window": 4})
    memory_formula = MemoryFormula("budget + window")
    paper: ClassVar[str] = "KVzap: Fast, Adaptive, and Faithful KV Cache Pruning, 2026"
    edges_option: ClassVar[str] = "window"
    size_options: ClassVar[tuple[str, ...]] = ("budget", "total", "threshold")
    recommended: ClassVar[dict[str, Any]] = {"sinks": 4, "floor": 16}

    predictor: str | None = None
    untrained: bool = False
    threshold: float = -4.0
    budget: int = method_option(0, least=0)
    window: int = method_option(128, least=0)
    sinks: int = method_option(0, least=0)
    floor: int = method_option(0, least=0)
    seed: int = method_option(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor is None and not self.untrained:
            raise UserError(
                f"{self.name} needs gates that were trained for the model; give their folder as "
                "predictor (`catekv kvzap train` makes some), or untrained=true to try it"
            )
        if not self.by_threshold:
            self.refuse_more_sinks_than_budget(self.sinks)
        if self.predictor is not None:
            _ = self.gates  # a folder that holds none is refused now

    @property
    def by_threshold(self) -> bool:
        return self.total is None and not self.budget

    @cached_property
    def gates(self) -> Gates:
        """Those of the folder."""
        assert self.predictor is not None
        return Gates.load(self.predictor)

    @property
    def needs(self) -> Needs:
        return Needs(attention_inputs=True)

    def validate(self, shape: ModelShape) -> None:
        if self.predictor is not None:
            self._check((shape.layers, shape.kv_heads))

    def validate_model(self, model_hash: str) -> None:
        trained = None if self.predictor is None else self.gates.meta.get("model_hash")
        if trained not in (None, model_hash):
            raise UserError(
                f"the KVzap gates in {self.predictor} were trained for another model (hash "
                f"{trained}, this one has {model_hash}); train some with `catekv kvzap train`"
            )

    def _check(self, wanted: tuple[int, ...]) -> None:
        """``UserError`` unless the gates have these numbers of layers, KV heads and inputs."""
        inputs, outputs, _ = self.gates.sizes
        own = (len(self.gates.layers), outputs, inputs)
        refuse_other_extents(f"the KVzap gates in {self.predictor} are for", own, wanted)

    def given_table(self, tokens: int, shape: ModelShape) -> Tensor:
        if self.by_threshold:
            return Method.budget_table(self, tokens, shape)
        return super().given_table(tokens, shape)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = self.given_table(tokens, shape)
        return table if bool((table >= tokens).all()) else Method.budget_table(self, tokens, shape)

    def for_heads(self, heads: slice) -> KVzap:
        raise NeedsAllHeadsError(
            f"{self.name} scores all heads of a layer at once, which no process of a "
            "tensor-parallel group has; use one process"
        )

    def entry_scores(self, observed: Observed) -> Tensor:
        """What the gates foretell of every token: float32 [batch, kv_heads, tokens]."""
        states = observed.attention_inputs
        if states is None:
            raise UserError(
                f"{self.name} needs what attention reads; pass Observed(attention_inputs=...)"
            )
        layers, heads, inputs = observed.num_layers, observed.keys.shape[1], states.shape[-1]
        if self.predictor is None:
            gates = untrained_gates((inputs, heads), layers, self.seed)
        else:
            self._check((layers, heads, inputs))
            gates = self.gates
        return gates.scores(observed.layer, states)

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        keep = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device)
        before = max(0, observed.tokens - self.window)
        scores = self.entry_scores(observed)[:, :, :before]
        scores[:, :, : self.sinks] = torch.inf
        if self.by_threshold:
            keep[:, :, :before] = (scores >= self.threshold) | top_mask(
                scores, torch.tensor(self.floor)
            )
            return Selection(keep)
        places = self.counts_of(observed).sum()
        keep[:, :, :before] = top_mask(scores.flatten(1), places).view(scores.shape)
        return Selection(keep)
