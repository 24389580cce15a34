"""Take the context away from a chosen number of heads, and see what a task loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np
import torch

from catekv.calibration.cokv.coalitions import CoalitionScorer
from catekv.calibration.cokv.game import Floats, Members
from catekv.errors import UserError
from catekv.evaluation.run.asking import Trial
from catekv.methods.formulas.budgets import extreme_groups

#: Which heads lose their context: the most or the least important ones, or any.
ORDERS = ("top", "low", "random")
#: Shares of the heads that are masked: {16, 32, 64, 96, 128} of 256 as published.
_PUBLISHED_SHARES = (16, 8, 4, 8 / 3, 2)


def default_counts(players: int) -> tuple[int, ...]:
    """A sixteenth to a half of the heads."""
    return tuple(sorted({max(1, round(players / share)) for share in _PUBLISHED_SHARES}))


def unmasked(scores: Floats, count: int, order: str, seed: int = 0) -> Members:
    """The heads that keep their context when exactly ``count`` lose it: bool [players].

    Args:
        scores: [layers, kv_heads]. order: one of :data:`ORDERS`. seed: of a random order.

    Raises:
        UserError: an unknown order, or more heads than there are.
    """
    if order not in ORDERS:
        raise UserError(f"unknown order {order!r}; use {', '.join(ORDERS)}")
    if not 0 <= count <= scores.size:
        raise UserError(f"cannot mask {count} of {scores.size} heads; give 0 to {scores.size}")
    keep = np.ones(scores.size, dtype=np.bool_)
    if order == "random":
        keep[Random(f"cokv-mask:{seed}").sample(range(scores.size), count)] = False
    else:
        keep[extreme_groups(torch.from_numpy(scores), count, order).numpy()] = False
    return keep


def masking_curve(
    scorer: CoalitionScorer,
    trials: Sequence[Trial],
    masks: Mapping[str, Members],
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Official scores of every mask by label, in the order of the trials."""
    labels = list(masks)
    found: dict[str, list[float]] = {label: [] for label in labels}
    for trial in trials:
        values = scorer.scores(trial, [masks[label] for label in labels])
        for label, value in zip(labels, values, strict=True):
            found[label].append(value)
        advance()
    return found


def masks_of(scores: Floats, counts: Sequence[int], random_draws: int = 4) -> dict[str, Members]:
    """Masks by label: ``full``, ``window`` (all masked), ``top-K``, ``low-K`` and ``random-K-S``
    for several draws S."""
    everyone = np.ones(scores.size, dtype=np.bool_)
    masks = {"full": everyone, "window": ~everyone}
    for count in counts:
        masks[f"top-{count}"] = unmasked(scores, count, "top")
        masks[f"low-{count}"] = unmasked(scores, count, "low")
        for seed in range(random_draws):
            masks[f"random-{count}-{seed}"] = unmasked(scores, count, "random", seed)
    return masks
