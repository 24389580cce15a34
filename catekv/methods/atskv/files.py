"""Trained relevance predictors on disk: a folder with one safetensors file and one JSON file.

``predictor.json``: ``format``, ``layers``, ``predictor`` (the fields of
:class:`catekv.methods.atskv.relevance.PredictorConfig`), ``layer_quantiles`` and ``layer_betas``
(one number per layer, or null) and ``meta`` (anything: model, training data, losses).
``predictor.safetensors``: for every layer i ``{i}.inner.weight`` [width, inputs],
``{i}.inner.bias`` [width] and, in the two-layer form, ``{i}.outer.weight`` [1, width] and
``{i}.outer.bias`` [1]; float32, inputs in the order hidden state, attention, handcrafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from catekv.errors import UserError
from catekv.files import read_json, read_tensors, write_tensors
from catekv.methods.atskv.relevance import PredictorConfig, RelevancePredictor
from catekv.models.finite import refuse_diverged

FORMAT_VERSION = 1
DESCRIPTION_FILE = "predictor.json"
TENSOR_FILE = "predictor.safetensors"


@dataclass(frozen=True, eq=False)
class PredictorSet:
    """One predictor per layer of one model, with the thresholds that training found."""

    layers: tuple[RelevancePredictor, ...]
    layer_quantiles: tuple[float, ...] | None = None
    layer_betas: tuple[float, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError("a predictor set needs at least one layer")
        if any(layer.config != self.config for layer in self.layers):
            raise UserError("the predictors of one set must share their configuration")
        for name in ("layer_quantiles", "layer_betas"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.layers):
                raise UserError(f"{len(values)} {name} for predictors of {len(self.layers)} layers")

    @property
    def config(self) -> PredictorConfig:
        return self.layers[0].config


def save_predictors(folder: Path | str, predictors: PredictorSet) -> None:
    """Write a predictor folder; ``UserError`` if it cannot be written, or values are not finite."""
    folder = Path(folder)
    tensors = {
        f"{index}.{name}": tensor.detach().float().cpu().contiguous()
        for index, layer in enumerate(predictors.layers)
        for name, tensor in layer.state_dict().items()
    }
    refuse_diverged(tensors, "the predictors")
    description = {
        "format": FORMAT_VERSION,
        "layers": len(predictors.layers),
        "predictor": predictors.config.to_dict(),
        "layer_quantiles": _listed(predictors.layer_quantiles),
        "layer_betas": _listed(predictors.layer_betas),
        "meta": predictors.meta,
    }
    write_tensors(
        folder / TENSOR_FILE, tensors, folder / DESCRIPTION_FILE, description, "the predictors"
    )


def load_predictors(folder: Path | str) -> PredictorSet:
    """Read a predictor folder; ``UserError`` if there is none, or one of another format."""
    folder = Path(folder)
    try:
        description = read_json(folder / DESCRIPTION_FILE)
        tensors = read_tensors(folder / TENSOR_FILE)
    except UserError as error:
        raise UserError(f"{folder} holds no relevance predictors: {error}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT_VERSION:
        raise UserError(
            f"{folder} has predictor format {found!r}, this version reads {FORMAT_VERSION}; train "
            "the predictors again"
        )
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise UserError(
            f"the relevance predictors in {folder} hold values that are not finite ({broken[0]}); "
            "train them again"
        )
    try:
        config = PredictorConfig(**description["predictor"])
        layers = []
        for index in range(int(description["layers"])):
            layer = RelevancePredictor(config).requires_grad_(False)
            layer.load_state_dict({name: tensors[f"{index}.{name}"] for name in layer.state_dict()})
            layers.append(layer)
        return PredictorSet(
            tuple(layers),
            _numbers(description.get("layer_quantiles")),
            _numbers(description.get("layer_betas")),
            dict(description.get("meta") or {}),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the relevance predictors in {folder} are damaged: {error}") from error


def check_model(predictors: PredictorSet, folder: Path | str, model_hash: str) -> None:
    """Raise ``UserError`` if predictors were trained for another model than the one of this hash
    (:func:`catekv.evaluation.records.environment.model_identity`); those that do not say pass."""
    trained_on = predictors.meta.get("model_hash")
    if trained_on not in (None, model_hash):
        raise UserError(
            f"the predictors in {folder} were trained for another model (hash {trained_on}, this "
            f"one has {model_hash}); train some with `catekv atskv train`"
        )


def _listed(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _numbers(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    found = torch.tensor(values, dtype=torch.float64)
    if not bool(found.isfinite().all()):
        raise ValueError("a quantile or beta is not finite")
    return tuple(found.tolist())
