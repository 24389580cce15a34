"""What predictions are worth, as fields of a record."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from catekv import tasks
from catekv.tasks.core.sample import Sample


def scored(predictions: Sequence[str], sample: Sample) -> dict[str, Any]:
    """The scores of a sample's answers, averaged over them."""
    found = [tasks.score(prediction, sample) for prediction in predictions]
    means = {name: fmean(scores[name] for scores in found) for name in found[0]}
    return {
        "official": means.pop("official"),
        "strict": means.pop("strict", None),
        "scores": means,
    }
