"""How ATSKV turns relevance into two tiers: levels, thresholds, momentum, migration, rewards.

Quantiles have the paper's direction everywhere: a level q keeps the share 1 - q, and more memory
pressure means a higher level. (The released code reads them as kept shares, so that pressure makes
it keep more.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from catekv.methods.formulas.scoring import top_mask


def quantile_level(pressure: float, q_min: float = 0.5, q_max: float = 0.9) -> float:
    """q(t) from the memory pressure: current bytes over the bytes allowed."""
    return q_min + (q_max - q_min) * min(1.0, pressure)


def smoothed_level(level: float, target: float, inertia: float = 0.9) -> float:
    """One step of the exponentially smoothed level."""
    return inertia * level + (1 - inertia) * target


def threshold(relevance: Tensor, level: float, beta: float = 1.0) -> Tensor:
    """``beta * quantile(relevance, level)`` per row, with linear interpolation: [...] of
    [..., tokens].

    With ``beta`` other than 1 the share kept is no longer ``1 - level``.
    """
    # torch.quantile refuses more than 2^24 values; sorting does not
    ordered = relevance.float().sort(dim=-1).values
    place = level * (ordered.shape[-1] - 1)
    low = min(int(place), ordered.shape[-1] - 1)
    high = min(low + 1, ordered.shape[-1] - 1)
    return beta * torch.lerp(ordered[..., low], ordered[..., high], place - low)


def relevance_mask(relevance: Tensor, level: float, beta: float = 1.0) -> Tensor:
    """Tokens whose relevance is above the threshold (strictly): bool [..., tokens]."""
    return relevance > threshold(relevance, level, beta)[..., None]


def momentum(soft: Tensor, mask: Tensor, inertia: float = 0.8) -> Tensor:
    """The soft mask after one step. It is made binary (above 0.5) only where it is used: a mask
    that is made binary every step never changes for an inertia above 0.5."""
    return inertia * soft + (1 - inertia) * mask.to(soft.dtype)


def migrate(
    relevance: Tensor, active: Tensor, demote_below: float = 0.2, promote_above: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Which tokens leave the active tier and which ones come back to it; both strict.

    Args:
        relevance, active: [..., tokens]; ``active`` is bool.

    Returns:
        (demote, promote), bool [..., tokens].
    """
    return active & (relevance < demote_below), ~active & (relevance > promote_above)


def reward(performance: float, memory: float, alpha: float = 0.7) -> float:
    """Reward of one episode; ``memory`` is the share of KV pairs that was retained."""
    return alpha * performance - (1 - alpha) * memory


def simple_controller(
    ratio: float,
    memory: float,
    target: float,
    performance: float,
    min_ratio: float = 0.1,
    max_ratio: float = 0.9,
) -> float:
    """Next retention ratio of the ``dynamic_kv`` that ATSKV compared with: a tenth less when memory
    exceeds the target by a tenth, a tenth more when it is a tenth below and quality suffers."""
    if memory / target > 1.1:
        ratio *= 0.9
    elif memory / target < 0.9 and performance < 0.95:
        ratio *= 1.1
    return min(max_ratio, max(min_ratio, ratio))


def controlled_ratios(
    start: float,
    steps: Iterable[tuple[float, float]],
    target: float,
    min_ratio: float = 0.1,
    max_ratio: float = 0.9,
) -> list[float]:
    """Ratios of :func:`simple_controller` after each (memory, performance)."""
    ratios = []
    for memory, performance in steps:
        start = simple_controller(start, memory, target, performance, min_ratio, max_ratio)
        ratios.append(start)
    return ratios


def memory_reduction(method_bytes: float, full_bytes: float) -> float:
    """Per cent of memory saved against a full cache of the same context length."""
    return 100 * (1 - method_bytes / full_bytes)


def best_of(relevance: Tensor, among: Tensor, count: int) -> Tensor:
    """The ``count`` most relevant marked tokens, ties to the lower index: bool [tokens]."""
    ranked = relevance.masked_fill(~among, -torch.inf)
    return top_mask(ranked, torch.tensor(max(0, count))) & among


def best_with(relevance: Tensor, always: Tensor, count: int) -> Tensor:
    """The tokens that are always taken and the most relevant others, ``count`` together (more if
    more are always taken): bool [tokens]."""
    return always | best_of(relevance, ~always, count - int(always.sum()))
