"""Where a method's relevance predictors come from: a trained folder, or random weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from catekv.errors import UserError
from catekv.methods.atskv.files import PredictorSet, check_model, load_predictors
from catekv.methods.atskv.relevance import PredictorConfig, RelevancePredictor, untrained_predictor

#: Method options that a predictor's file also holds: option -> (field of PredictorConfig, default).
PREDICTOR_OPTIONS: dict[str, tuple[str, Any]] = {
    "predictor_kind": ("kind", "mlp"),
    "predictor_width": ("width", 32),
    "feature_dim": ("feature_dim", 64),
    "attention_feature": ("attention_feature", "vector"),
    "causal_normalised": ("causal_normalised", True),
}


@dataclass(frozen=True, eq=False)
class PredictorSource:
    """The predictors of one method.

    Attributes:
        folder: of trained predictors; None: random ones.
        trained: what the folder holds.
        options: the method's predictor options, all of them known.
        seed: of random ones.
    """

    folder: str | None
    trained: PredictorSet | None
    options: dict[str, Any]
    seed: int
    _placed: dict[Any, RelevancePredictor] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: str | None, given: dict[str, Any], seed: int) -> PredictorSource:
        """Read the folder and complete the options (None: the file's value, or the default).

        Raises:
            UserError: no predictors there, an option that they do not fit, or a bad one.
        """
        trained = None if folder is None else load_predictors(folder)
        stored = None if trained is None else trained.config.to_dict()
        options = {}
        for option, (name, default) in PREDICTOR_OPTIONS.items():
            value = default if stored is None else stored[name]
            if stored is not None and given[option] not in (None, value):
                raise UserError(
                    f"{option} {given[option]!r} does not fit the predictor in {folder}, which has "
                    f"{value!r}; leave the option out"
                )
            options[option] = value if given[option] is None else given[option]
        source = cls(folder, trained, options, seed)
        source.config(1, 1)  # refuses bad options now
        return source

    def config(self, hidden_size: int, query_heads: int) -> PredictorConfig:
        """The configuration of an untrained predictor for a model of these sizes."""
        named = {name: self.options[option] for option, (name, _) in PREDICTOR_OPTIONS.items()}
        return PredictorConfig(hidden_size, query_heads, **named)

    def check(self, layers: int, query_heads: int | None = None) -> None:
        """Raise ``UserError`` if trained predictors are not for a model of these numbers."""
        if self.trained is None:
            return
        for what, own, wanted in (
            ("layers", len(self.trained.layers), layers),
            ("query heads", self.trained.config.query_heads, query_heads),
        ):
            if wanted not in (None, own):
                raise UserError(
                    f"the relevance predictors in {self.folder} are for {own} {what} but the model "
                    f"has {wanted}; use those trained for this model"
                )

    def check_model(self, model_hash: str) -> None:
        """Raise ``UserError`` if trained predictors say that they are another model's."""
        if self.trained is not None and self.folder is not None:
            check_model(self.trained, self.folder, model_hash)

    def layer(
        self, index: int, layers: int, sizes: tuple[int, int], device: torch.device
    ) -> RelevancePredictor:
        """The predictor of a layer on a device; ``sizes`` are (hidden size, query heads)."""
        key = (index, sizes, device)
        if key not in self._placed:
            if self.trained is None:
                made = untrained_predictor(self.config(*sizes), self.seed, index)
            else:
                self.check(layers)
                made = copy.deepcopy(self.trained.layers[index])
            self._placed[key] = made.to(device)
        return self._placed[key]

    def thresholds(self, layer: int) -> tuple[float | None, float | None]:
        """Quantile level and beta that training found for a layer; None where it did not."""
        if self.trained is None:
            return None, None
        levels, betas = self.trained.layer_quantiles, self.trained.layer_betas
        return (
            None if levels is None else levels[layer],
            None if betas is None else betas[layer],
        )
