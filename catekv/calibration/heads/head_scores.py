"""Importance of every KV head: the one file that all ways to estimate it write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catekv.errors import UserError
from catekv.evaluation.report.statistics import bootstrap_average
from catekv.files import read_arrays, write_arrays
from catekv.methods.formulas.budgets import largest_remainder
from catekv.methods.head_mask import HeadMask
from catekv.models.shape import model_shape_of, refuse_other_extents

Floats = np.ndarray[Any, np.dtype[np.float64]]
#: Entry of a recipe that says how samples become one score where it is not their mean.
JOINED, MAXIMUM = "joined", "maximum"


@dataclass(frozen=True, eq=False)
class HeadScores:
    """What the heads of one model are worth.

    Attributes:
        samples: float64 [samples, layers, kv_heads], larger = needs more entries; one table per
            text, run or slice that tells of the heads by itself.
        recipe: plain values: ``kind``, ``model``, ``config_hash``, ``seconds`` that it took, and
            what else it was made with.
        arrays: further arrays of the file, such as the loss curves behind the scores.
    """

    samples: Floats
    recipe: dict[str, Any]
    arrays: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples, dtype=np.float64)
        samples = samples[None] if samples.ndim == 2 else samples
        if samples.ndim != 3 or not samples.size:
            raise UserError(
                f"scores of the shape {list(samples.shape)}; they are [samples, layers, KV heads]"
            )
        wrong = np.argwhere(~np.isfinite(samples))
        if len(wrong):
            _, layer, head = wrong[0]
            raise UserError(
                f"the score of layer {layer} head {head} is no finite number; make the scores again"
            )
        object.__setattr__(self, "samples", samples)

    @property
    def scores(self) -> Floats:
        """Mean over the samples, or their maximum where the recipe says so: float64 [layers,
        kv_heads]."""
        joined = np.max if self.recipe.get(JOINED) == MAXIMUM else np.mean
        return np.asarray(joined(self.samples, axis=0))

    @property
    def shape(self) -> tuple[int, int]:
        return self.samples.shape[1], self.samples.shape[2]

    def intervals(self) -> tuple[Floats, Floats] | None:
        """95 % intervals of the mean over the samples; None for a single sample, or a maximum."""
        if len(self.samples) < 2 or self.recipe.get(JOINED) == MAXIMUM:
            return None
        columns = self.samples.reshape(len(self.samples), -1).T.tolist()
        found = [bootstrap_average({"": column}) for column in columns]
        low = [one.low if one else np.nan for one in found]
        high = [one.high if one else np.nan for one in found]
        return np.reshape(low, self.shape), np.reshape(high, self.shape)

    def votes(self, ratio: float) -> Floats:
        """Samples that have a head among the ``ceil(ratio * heads)`` best: int [layers, heads]."""
        masks = [HeadMask.from_scores(torch.from_numpy(one), ratio) for one in self.samples]
        return np.asarray(torch.stack([mask.adaptive for mask in masks]).sum(dim=0).numpy())

    def mask(self, ratio: float) -> HeadMask:
        """The best ``ceil(ratio * heads)`` heads are adaptive; ties: lower flat index.

        Raises:
            UserError: scores that are all equal tell no head from another.
        """
        scores = self.scores
        if ratio < 1 and np.ptp(scores) == 0:
            raise UserError(
                f"all scores are {scores.flat[0]:g}, so that no share of {ratio:g} of the heads "
                "follows from them; use scores that differ"
            )
        mask = HeadMask.from_scores(torch.from_numpy(scores), ratio)
        meta = {name: self.recipe.get(name) for name in ("model", "config_hash")}
        return replace(mask, meta={**mask.meta, **meta, "recipe": _plain(self.recipe)})

    def budgets(self, budget: int, least: int = 0) -> Floats:
        """Entries per head, ``budget`` on average and ``least`` for every one; what is above that
        follows the scores less the smallest of negative ones: int64 [layers, kv_heads]."""
        scores = torch.from_numpy(self.scores)
        scores = scores - scores.min().clamp(max=0)
        split = largest_remainder(scores, (budget - least) * scores.numel())
        return np.asarray((split + least).numpy())

    def check_model(self, config: Any, digest: str | None = None) -> None:
        """Raise ``UserError`` unless the scores fit a model (ModelShape or configuration)."""
        refuse_other_extents("the scores are for", self.shape, model_shape_of(config))
        own = self.recipe.get("config_hash")
        if own and digest and own != digest:
            raise UserError(
                f"the scores were made with a model of configuration {own}, this one has {digest}; "
                "use scores of this model"
            )

    def save(self, path: str | Path) -> Path:
        """Write an npz file. ``scores`` in it is what ``headkv``, ``cokv`` and ``duo_attention``
        read, ``low`` and ``high`` are its interval where there are several samples."""
        arrays = {"scores": self.scores, "samples": self.samples, **self.arrays}
        bounds = self.intervals()
        if bounds is not None:
            arrays.update(low=bounds[0], high=bounds[1])
        return write_arrays(path, {**arrays, "recipe": np.array(json.dumps(self.recipe))})

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: another kind of file, or a torn one.
        """
        arrays = read_arrays(path)
        missing = {"scores", "samples", "recipe"} - arrays.keys()
        if missing:
            raise UserError(
                f"{path} has no array {sorted(missing)[0]!r}: it holds no head scores; give a file "
                "of `catekv heads`"
            )
        try:
            recipe = json.loads(str(arrays.pop("recipe")))
            samples = arrays.pop("samples")
            if np.iscomplexobj(samples):
                raise TypeError("its numbers are complex")
            samples = samples.astype(np.float64)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"cannot read the head scores {path}: {error}; make them again"
            ) from error
        if not isinstance(recipe, dict):
            raise UserError(f"{path} holds a recipe that is none; make the scores again")
        kept = {name: arrays[name] for name in arrays.keys() - {"scores", "low", "high"}}
        return cls(samples, recipe, kept)


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe goes to the ``meta.json`` of masks: no tables."""
    return {name: value for name, value in recipe.items() if not isinstance(value, list | dict)}
