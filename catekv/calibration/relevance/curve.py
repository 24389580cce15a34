"""A training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from catekv.evaluation.plots import lines


def draw_curve(path: Path, curve: Sequence[dict[str, float | None]]) -> None:
    """Mean squared error per epoch on training and held-out texts."""
    curves = {}
    for name, label in (("train", "training texts"), ("held_out", "held-out texts")):
        points = [
            (float(epoch), value)
            for epoch, row in enumerate(curve, 1)
            if (value := row[name]) is not None
        ]
        if points:
            places, values = zip(*points, strict=True)
            curves[label] = (places, values)
    lines(path, curves, "Relevance predictors", "epoch", "mean squared error")
