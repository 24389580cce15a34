"""Score files: what a game gathered, with its recipe, as npz that needs no pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catekv.calibration.cokv.game import Agreement, Floats, Sums, compare, scores, slice_estimate
from catekv.errors import UserError
from catekv.files import read_arrays, write_arrays
from catekv.models.shape import refuse_other_extents

FORMAT = 1
_ARRAYS = ("left", "right", "left_count", "right_count", "draws", "slices", "shape", "recipe")


@dataclass(frozen=True)
class ScoreFile:
    """The sums of one or two runs over the slices of a game.

    Attributes:
        layers, kv_heads: of the model; player ``p`` is head ``p % kv_heads`` of layer
            ``p // kv_heads``.
        runs: one tuple of sums a run, in the order of the slices.
        recipe: model, task, validation samples, seed and versions, as plain values.
    """

    layers: int
    kv_heads: int
    runs: tuple[tuple[Sums, ...], ...]
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        players = self.layers * self.kv_heads
        sizes = [[one.size for one in run] for run in self.runs]
        if not sizes or not sizes[0] or any(row != sizes[0] for row in sizes):
            raise UserError("scores need the same slices in every run, at least one")
        for one in (sums for run in self.runs for sums in run):
            if one.players != players:
                raise UserError(
                    f"scores of {one.players} players do not fit {self.layers} layers x "
                    f"{self.kv_heads} KV heads ({players}); give the shape of the model they "
                    "were made with"
                )

    @property
    def slices(self) -> tuple[int, ...]:
        return tuple(one.size for one in self.runs[0])

    @property
    def draws(self) -> int:
        """Coalitions drawn altogether."""
        return sum(one.draws for run in self.runs for one in run)

    def estimates(self, use: str = "both") -> Floats:
        """Slice values, averaged over the runs: float64 [slices, layers, kv_heads]."""
        rows = [[slice_estimate(one, use) for one in run] for run in self.runs]
        return np.mean(rows, axis=0).reshape(-1, self.layers, self.kv_heads)

    def scores(self, use: str = "both") -> Floats:
        """Sliced Shapley values: float64 [layers, kv_heads]."""
        return self.estimates(use).mean(axis=0)

    def agreement(self, tolerance: float | None = None, use: str = "both") -> Agreement | None:
        """How well two runs agree; None with a single one."""
        if len(self.runs) < 2:
            return None
        return compare(scores(self.runs[0], use), scores(self.runs[1], use), tolerance)

    def check_model(self, layers: int, kv_heads: int, config_hash: str | None = None) -> None:
        """Raise ``UserError`` unless the scores were made with a model of this shape, and of this
        configuration where both are known."""
        own = self.recipe.get("config_hash")
        refuse_other_extents(
            "the scores are for",
            (self.layers, self.kv_heads),
            (layers, kv_heads),
            "use scores of this model (catekv cokv score)",
        )
        if own and config_hash and own != config_hash:
            raise UserError(
                f"the scores were made with another model ({self.recipe.get('model', 'unknown')}, "
                f"configuration {own}; this one has {config_hash}); use scores of this model"
            )

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all.

        ``scores`` [slices, layers, kv_heads] in it is what the method ``cokv`` reads, ``ssv``
        [layers, kv_heads] its mean.

        Raises:
            UserError: players without an estimate, or an unwritable place.
        """
        estimates = self.estimates()
        if not np.isfinite(estimates).all():
            raise UserError(
                f"{int((~np.isfinite(estimates)).any(axis=0).sum())} players have no estimate yet; "
                "draw more coalitions before scores are written"
            )
        return write_arrays(
            path,
            {
                "format": FORMAT,
                "scores": estimates,
                "ssv": estimates.mean(axis=0),
                "shape": np.array([self.layers, self.kv_heads]),
                "slices": np.array(self.slices),
                "left": self._stacked("left"),
                "right": self._stacked("right"),
                "left_count": self._stacked("left_count"),
                "right_count": self._stacked("right_count"),
                "draws": self._stacked("draws"),
                "recipe": np.array(json.dumps(self.recipe)),
            },
        )

    def _stacked(self, name: str) -> Any:
        return np.array([[getattr(one, name) for one in run] for run in self.runs])

    @classmethod
    def load(cls, path: str | Path) -> ScoreFile:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: missing, torn or another kind of file, or shapes that contradict each other.
        """
        path = Path(path)
        if path.suffix == ".npy":
            raise UserError(
                f"{path} is in the published pickled layout; convert it with `catekv cokv show "
                f"{path} --trust-pickle --shape LAYERSxHEADS --output FILE.npz`"
            )
        try:
            arrays = read_arrays(path)
        except UserError as error:
            raise UserError(f"cannot read the score file {path}: {error}") from error
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise UserError(
                f"{path} has no array {missing[0]!r}: it was not written by `catekv cokv "
                "score`; the method cokv may still read plain scores from it"
            )
        try:
            recipe = json.loads(str(arrays["recipe"]))
            return _assembled(path, arrays, recipe)
        except UserError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"cannot read the score file {path}: {error}") from error


def _assembled(path: Path, arrays: dict[str, Any], recipe: dict[str, Any]) -> ScoreFile:
    sizes, draws = arrays["slices"], arrays["draws"]
    shape = tuple(int(extent) for extent in arrays["shape"].flat)
    if len(shape) != 2 or min(shape) < 1 or sizes.ndim != 1 or draws.ndim != 2:
        raise UserError(f"{path} does not say its layers, KV heads and slices; it is torn")
    if not isinstance(recipe, dict) or draws.shape[1] != len(sizes):
        raise UserError(
            f"{path} holds no recipe, or draws of other slices than it names; it is torn"
        )
    if not ((sizes >= 1) & (sizes < shape[0] * shape[1])).all() or (draws < 1).any():
        raise UserError(f"{path} holds slices {sizes.tolist()} that its heads or draws rule out")
    wanted = (len(draws), len(sizes), shape[0] * shape[1])
    for name in _ARRAYS[:4]:
        if arrays[name].shape != wanted:
            raise UserError(
                f"{path}: {name} has the shape {list(arrays[name].shape)}, but runs, slices and "
                f"players make {list(wanted)}; the file is torn"
            )
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: {name} holds a value that is no finite number")
    runs = tuple(
        tuple(
            Sums(
                int(size),
                arrays["left"][run, place],
                arrays["right"][run, place],
                arrays["left_count"][run, place],
                arrays["right_count"][run, place],
                int(count),
            )
            for place, (size, count) in enumerate(zip(sizes, draws[run], strict=True))
        )
        for run in range(len(draws))
    )
    return ScoreFile(*shape, runs, recipe)


def merged(files: Sequence[ScoreFile]) -> ScoreFile:
    """Slices of several files of one run and one model as one file.

    Raises:
        UserError: other models, or one slice twice.
    """
    first = files[0]
    for other in files:
        other.check_model(first.layers, first.kv_heads)
        if len(other.runs) != len(first.runs):
            raise UserError("files with one run and with two cannot be joined")
    runs = []
    for number in range(len(first.runs)):
        found = {one.size: one for file in files for one in file.runs[number]}
        if len(found) != sum(len(file.runs[number]) for file in files):
            sizes = sorted(one.size for file in files for one in file.runs[number])
            raise UserError(f"a slice is there twice ({sizes}); join files of different slices")
        runs.append(tuple(found[size] for size in sorted(found)))
    return ScoreFile(first.layers, first.kv_heads, tuple(runs), first.recipe)
