"""Fitting one layer's relevance predictor.

Inputs differ by orders of magnitude (an attention feature is about one over the length, a hidden
state may be large), so the predictor is fitted on standardised inputs. Standardising is linear:
afterwards it moves into the first layer's weights, and what is saved reads plain ``[h; a; f]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from catekv.methods.atskv.relevance import PredictorConfig, RelevancePredictor, untrained_predictor

#: groups of inputs that training may be limited to
FEATURES = ("hidden", "attention", "handcrafted")
#: distance of the 5 % and 95 % quantiles of a normal distribution in standard deviations
_SPAN = 3.29


@dataclass
class Standard:
    """Centre and size of every input, from quantiles: a few tokens (attention sinks) are so far
    away that they would swallow everything else. Means over the prompts seen."""

    centre: Tensor | None = None
    size: Tensor | None = None
    prompts: int = 0

    def add(self, inputs: Tensor) -> None:
        """Take in one prompt's inputs [tokens, inputs]."""
        ordered = inputs.sort(dim=0).values
        last = len(ordered) - 1
        low, middle, high = (ordered[round(share * last)] for share in (0.05, 0.5, 0.95))
        size = (high - low) / _SPAN
        if self.centre is None or self.size is None:
            self.centre, self.size = torch.zeros_like(middle), torch.zeros_like(size)
        self.prompts += 1
        self.centre += (middle - self.centre) / self.prompts
        self.size += (size - self.size) / self.prompts

    def factors(self) -> tuple[Tensor, Tensor]:
        """Centre and what to multiply by; inputs that never change are multiplied by 0."""
        assert self.centre is not None
        assert self.size is not None
        return self.centre, torch.where(self.size > 1e-12, 1 / self.size.clamp(min=1e-12), 0.0)


@dataclass
class LayerFit:
    """One layer's predictor while it is fitted.

    Args:
        config: of the predictor. layer: its index. seed: of its first weights.
        features: groups of inputs that are used, of :data:`FEATURES`; the weights of the others
            end as 0.
        learning_rate: of Adam.
    """

    config: PredictorConfig
    layer: int
    seed: int
    features: Sequence[str]
    learning_rate: float
    standard: Standard = field(default_factory=Standard)
    module: RelevancePredictor = field(init=False)
    _ready: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        made = untrained_predictor(self.config, self.seed, self.layer)
        self.module = made.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=self.learning_rate)

    def _factors(self) -> tuple[Tensor, Tensor]:
        if self._ready is None:
            centre, factor = self.standard.factors()
            sizes = (self.config.hidden_size, self.config.attention_size, self.config.feature_dim)
            used = torch.cat(
                [
                    torch.full((size,), float(name in self.features))
                    for name, size in zip(FEATURES, sizes, strict=True)
                ]
            )
            self._ready = (centre, factor * used.to(factor.device))
            self.module.to(factor.device)
        return self._ready

    def learn(
        self, inputs: Tensor, labels: Tensor, weights: Tensor, batches: Sequence[Tensor]
    ) -> float:
        """One Adam step per batch of tokens; returns the mean (weighted) squared error of all.

        Args:
            inputs: [tokens, inputs]; labels, weights: [tokens]; batches: indices of tokens.
        """
        centre, factor = self._factors()
        total = 0.0
        with torch.enable_grad():
            for batch in batches:
                own = (inputs[batch] - centre) * factor
                loss = (weights[batch] * (self.module(own) - labels[batch]).square()).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += float(loss.detach()) * len(batch)
        return total / len(inputs)

    @torch.no_grad()
    def finished(self) -> RelevancePredictor:
        """The predictor as it reads plain inputs."""
        centre, factor = self._factors()
        found = RelevancePredictor(self.config).to(factor.device).requires_grad_(False)
        found.load_state_dict(self.module.state_dict())
        weight = self.module.inner.weight * factor
        found.inner.weight.copy_(weight)
        found.inner.bias.copy_(self.module.inner.bias - weight @ centre)
        return found
