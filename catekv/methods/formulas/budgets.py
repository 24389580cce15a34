"""How a number of tokens is split over layers and heads: formulas, without options or files.

Counts leave out what a method always keeps (a window, edges). All ties go to the lower flat index.
:mod:`catekv.methods.allocators` makes the interchangeable option ``budgets`` from these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.formulas.scoring import top_mask

ROUNDINGS = ("floor", "largest_remainder")
SHORT_PROMPTS = ("uniform", "clamped")
STEPS = ("integer", "fractional")
SAFEGUARDS = ("mixed", "reserved")

#: Quotas that miss a whole number by less than this are that number; remainders that differ by
#: less are tied.
_GUARD_DECIMALS = 9
_GUARD = 10.0**-_GUARD_DECIMALS


def largest_remainder(weights: Tensor, total: int) -> Tensor:
    """Split ``total`` in proportion to ``weights`` [...], exactly: int64 of the same shape.

    Every entry gets the floor of its quota; what is left goes to the largest remainders. Weights
    that are all 0 count as equal.

    Raises:
        UserError: negative weights or a negative total.
    """
    if total < 0:
        raise UserError(f"cannot split {total} tokens; give 0 or more")
    quota = shares(weights, total).flatten()
    counts = (quota + _GUARD).floor()
    remainder = ((quota - counts) / _GUARD).round()
    order = remainder.sort(descending=True, stable=True).indices
    counts[order[: total - int(counts.sum())]] += 1
    return counts.long().view(weights.shape)


def shares(
    weights: Tensor, total: float, limit: int | None = None, redistribute: bool = False
) -> Tensor:
    """Real-valued quotas of ``total`` in proportion to ``weights`` [...]: float64.

    Args:
        weights: at least 0; all 0 counts as all equal.
        total: what is split.
        limit: the most one entry may get.
        redistribute: share what lies above the limit among the others in proportion to their
            weights, evenly once all weighted ones are full; otherwise it is lost.

    Raises:
        UserError: negative weights.
    """
    weights = weights.double()
    if weights.numel() and float(weights.min()) < 0:
        raise UserError(f"cannot split tokens by the negative weight {float(weights.min()):g}")
    if not float(weights.sum()) > 0:
        weights = torch.ones_like(weights)
    quota = weights / weights.sum() * total
    if limit is None:
        return quota
    if not redistribute:
        return quota.clamp(max=limit)
    free = torch.ones_like(weights, dtype=torch.bool)
    total = min(total, limit * weights.numel())
    while bool((above := free & (quota > limit)).any()):
        free &= ~above
        rest = total - limit * int((~free).sum())
        open_weights = weights * free
        if not float(open_weights.sum()) > 0:
            open_weights = free.double()
        part = open_weights / open_weights.sum().clamp(min=_GUARD) * rest
        quota = torch.where(free, part, float(limit))
    return quota


def proportional(
    weights: Tensor,
    total: int,
    rounding: str = "floor",
    limit: int | None = None,
    redistribute: bool = False,
) -> Tensor:
    """Whole numbers in proportion to ``weights`` [...], none above ``limit``: int64.

    Args:
        weights, total, limit, redistribute: as in :func:`shares`.
        rounding: ``floor`` (loses up to one token per entry) or ``largest_remainder`` (the sum is
            ``total`` exactly, as far as ``limit`` lets it).
    """
    if limit is not None and redistribute:
        quota = shares(weights, total, limit, True)
        total = min(total, limit * weights.numel())
    else:
        quota = shares(weights, total)
    if rounding == "floor":
        counts = (quota + _GUARD).floor().long()
    else:
        counts = largest_remainder(quota, total)
    return counts if limit is None else counts.clamp(max=limit)


def pyramid_budgets(
    base: int,
    layers: int,
    tokens: int,
    window: int,
    beta: float = 20,
    short_prompt: str = "uniform",
    step: str = "integer",
    rescale: bool = False,
) -> Tensor:
    """PyramidKV's arithmetic budgets from the first layer to the last: int64 [layers].

    Args:
        base: mean budget; layers: number of layers; tokens: prompt length; window: always kept.
        beta: the last layer gets ``base // beta``, as far as the prompt is long enough.
        short_prompt: below ``2 * base`` tokens ``uniform`` budgets or the ``clamped`` pyramid.
        step: between neighbouring layers ``integer`` (as released; overshoots the total), or
            ``fractional``, with budgets rounded one by one.
        rescale: make the sum ``base * layers``.
    """
    room = max(0, tokens - window)
    uniform = torch.full((layers,), min(base, room))
    if base >= room or layers == 1 or (short_prompt == "uniform" and tokens < 2 * base):
        return uniform
    low = base // beta if step == "integer" else base / beta
    high = 2 * base - low
    if high >= room:
        high, low = room, 2 * base - room
    down = (high - low) / (layers - 1)
    down = down // 1 if step == "integer" else down
    budgets = (high - down * torch.arange(layers, dtype=torch.float64)).round().long()
    if rescale:
        budgets = proportional(budgets, base * layers, "largest_remainder", room, True)
    return budgets


def ada_counts(
    scores: Tensor,
    base: Tensor,
    floor: float = 0.2,
    *,
    safeguard: str = "mixed",
    window: int = 0,
    exact: bool = False,
    normalise: bool = False,
) -> Tensor:
    """AdaKV's split of one layer's tokens over its heads: int64 [batch, kv_heads].

    The best scores of all heads together decide how many tokens each head gets.

    Args:
        scores: [batch, kv_heads, entries], of the tokens outside the window.
        base: int [kv_heads], what each head would get; their sum is split anew.
        floor: share f of the base that no head loses.
        safeguard: ``mixed``: ``round((1 - f) * count + floor(f * base))``, halves to even;
            ``reserved``: every head's best ``floor(f * (base + window)) - window`` tokens are taken
            first, with the window at least one where f is above 0, the rest by score (the sum is
            always exact).
        window: tokens of the window, for ``reserved``.
        exact: round ``mixed`` so that the sum is that of ``base``.
        normalise: multiply a head's scores by the share of its best ``base`` scores in its total.
    """
    entries = scores.shape[-1]
    base = base.clamp(max=entries).to(scores.device)
    total = base.sum()
    if normalise:
        best = (scores * top_mask(scores, base)).sum(dim=-1)
        scores = scores * (best / scores.sum(dim=-1).clamp(min=1e-30))[..., None]
    if safeguard == "reserved":
        sure = ((base + window) * floor + _GUARD).floor().long().clamp(min=1 if floor else 0)
        sure = (sure - window).clamp(min=0).minimum(base)
        scores = scores.masked_fill(top_mask(scores, sure), torch.inf)
    counts = top_mask(scores.flatten(1), total).unflatten(1, scores.shape[1:]).sum(dim=-1)
    if safeguard == "reserved":
        return counts
    mixed = counts.double() * (1 - floor)
    if exact:
        quotas = mixed + base * floor
        return torch.stack([largest_remainder(row, int(total)) for row in quotas.cpu()]).to(
            scores.device
        )
    return (mixed + (base * floor + _GUARD).floor()).round().long().clamp(max=entries)


def headkv_quotas(scores: Tensor, base: int, beta: float = 1.01) -> Tensor:
    """HeadKV's real-valued budgets: float64 of the shape of ``scores``.

    ``base // beta`` (floor division, also for a fractional beta) of every head's base goes into a
    pool that the scores, normalised to sum 1, split; the rest stays with the head.
    """
    pooled = base // beta
    scores = scores.double()
    share = (
        scores / scores.sum()
        if float(scores.sum()) > 0
        else torch.full_like(scores, 1 / scores.numel())
    )
    return share * pooled * scores.numel() + (base - pooled)


def cokv_weights(scores: Tensor, alpha: int = 1) -> Tensor:
    """CoKV's weights: how far a score lies above the ``alpha``-th smallest (1-based), else 0.

    At least ``alpha`` groups get 0; groups tied with the border do too. Differences below 1e-9 of
    the range are ties.
    """
    scores = scores.double()
    border = scores.flatten().sort().values[alpha - 1]
    weights = (scores - border).clamp(min=0)
    return weights.masked_fill(weights <= _GUARD * (scores.max() - scores.min()), 0.0)


def extreme_groups(scores: Tensor, count: int, which: str = "top") -> Tensor:
    """Flat indices of exactly ``count`` groups with the highest (``top``) or lowest (``low``)
    scores, ascending: int64 [count]. Ties go to the lower index."""
    order = scores.flatten().double().sort(descending=which == "top", stable=True).indices
    return order[:count].sort().values


def combine_slices(scores: Tensor, scaling: str = "none") -> Tensor:
    """One CoKV score per group from slices [slices, layers, kv_heads]: their mean, each slice
    brought to mean 0 and deviation 1 first with ``scaling="zscore"``; others pass unchanged."""
    if scores.dim() < 3:
        return scores
    if scaling == "zscore":
        deviation = scores.std(dim=(1, 2), correction=0, keepdim=True).clamp(min=1e-30)
        scores = (scores - scores.mean(dim=(1, 2), keepdim=True)) / deviation
    return scores.mean(dim=0)
