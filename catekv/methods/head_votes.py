"""How reference samples vote for adaptive heads, and how many heads a ratio asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.prompt_layout import ROUNDING_GUARD, ceil_count

STATIC_VOTES = ("per_ratio", "cumulative")
VOTE_COUNTS = ("exact", "keep_ties")
GAMMA_RULES = ("le", "lt")

#: Mean CVs that agree to this many decimals are ties.
MEAN_CV_DECIMALS = 9
#: Ratios of the published mask files.
STANDARD_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def check_ratio(ratio: float) -> float:
    """``ratio`` itself; ``UserError`` if it is not in (0, 1]."""
    if not 0 < ratio <= 1:
        raise UserError(f"ratio {ratio} is outside (0, 1]; it is the share of adaptive heads")
    return float(ratio)


def adaptive_count(ratio: float, heads: int) -> int:
    """Number of adaptive heads at a ratio: ``ceil(ratio * heads)``, safe against rounding."""
    return ceil_count(check_ratio(ratio) * heads)


def typed_layers(cvs: Tensor) -> Tensor:
    """Bool [layers]: which layers are compressed, so that their heads have statistics.

    The others hold NaN throughout. ``cvs`` [..., layers, kv_heads]. ``ValueError`` if there is no
    such layer, or a value in one is not finite.
    """
    samples = cvs.reshape(-1, *cvs.shape[-2:])
    typed = ~samples.isnan().all(dim=-1).all(dim=0)
    if not bool(typed.any()) or not bool(samples[:, typed].isfinite().all()):
        raise ValueError("statistics are not finite")
    return typed


def gamma(cvs: Tensor, ratio: float) -> Tensor:
    """Γ(r): the r-quantile over all layers and heads of each sample.

    ``cvs`` [..., layers, kv_heads] -> [...], fp64. Heads with NaN (of layers that are not
    compressed) do not count.
    """
    flat = cvs.double().flatten(-2)
    return torch.nanquantile(flat, check_ratio(ratio), dim=-1)


def sample_mask(cvs: Tensor, ratio: float, gamma_rule: str = "le") -> Tensor:
    """Adaptive heads of each sample by itself: bool, shape of ``cvs`` [..., layers, kv_heads].

    A head is adaptive if its CV is at most Γ(r) (``le``) or below it (``lt``), compared with a
    tolerance of ``1e-9 * max(1, abs(Γ))``.
    """
    if gamma_rule not in GAMMA_RULES:
        raise UserError(f"unknown gamma_rule {gamma_rule!r}; use {' or '.join(GAMMA_RULES)}")
    limit = gamma(cvs, ratio)
    tolerance = ROUNDING_GUARD * limit.abs().clamp_min(1.0)
    if gamma_rule == "le":
        return cvs.double() <= (limit + tolerance)[..., None, None]
    return cvs.double() < (limit - tolerance)[..., None, None]


def count_votes(cvs: Tensor, ratio: float, gamma_rule: str = "le") -> Tensor:
    """Samples that call a head adaptive at ``ratio``: int64 [layers, kv_heads]."""
    return sample_mask(cvs, ratio, gamma_rule).sum(dim=0)


def adaptive_order(
    cvs: Tensor,
    ratio: float,
    static_vote: str = "per_ratio",
    vote_count: str = "exact",
    *,
    ratios: Sequence[float] = STANDARD_RATIOS,
    gamma_rule: str = "le",
) -> tuple[list[int], int]:
    """Heads in the order in which they become adaptive, from the CVs of several reference samples.

    Args:
        cvs: [samples, layers, kv_heads]. Layers that are not compressed hold NaN: their heads are
            never adaptive and do not count.
        ratio: r in (0, 1], share of adaptive heads.
        static_vote: ``per_ratio``: votes at this ratio; ``cumulative``: votes of every ratio of
            ``ratios`` up to this one are added, as the released script does.
        vote_count: ``exact``: the ``ceil(r * heads)`` heads with the most votes, ties by lower mean
            CV (9 decimals), then lower flat index; ``keep_ties``: every head with at least as many
            votes as the last of those.
        ratios: ascending ratios of the cumulative vote; ``ratio`` itself is always counted.
        gamma_rule: how a sample votes, see :func:`sample_mask`.

    Returns:
        Flat indices of all heads, the first to become adaptive first, and how many of them are
        adaptive at ``ratio``.

    Raises:
        UserError: no samples, CVs that are not finite, or an unknown option.
    """
    if cvs.dim() != 3 or not cvs.numel():
        raise UserError(f"CVs have the shape [samples, layers, KV heads], not {list(cvs.shape)}")
    try:
        present = typed_layers(cvs).cpu().repeat_interleave(cvs.shape[-1])
    except ValueError as error:
        raise UserError(
            "CVs hold values that are not finite; make the reference pass again"
        ) from error
    if static_vote not in STATIC_VOTES:
        raise UserError(f"unknown static_vote {static_vote!r}; use {' or '.join(STATIC_VOTES)}")
    if vote_count not in VOTE_COUNTS:
        raise UserError(f"unknown vote_count {vote_count!r}; use {' or '.join(VOTE_COUNTS)}")
    check_ratio(ratio)
    cvs = cvs.double().cpu()
    counted = [ratio]
    if static_vote == "cumulative":
        counted += [other for other in ratios if other < ratio - ROUNDING_GUARD]
    votes = torch.stack([count_votes(cvs, other, gamma_rule) for other in counted]).sum(dim=0)
    flat = votes.flatten()
    count = adaptive_count(ratio, int(present.sum()))
    scale = 10.0**MEAN_CV_DECIMALS
    means = ((cvs.mean(dim=0).flatten() * scale).round() / scale).nan_to_num(nan=torch.inf)
    mean_cv = means.tolist()
    order = sorted(range(len(flat)), key=lambda head: (-int(flat[head]), mean_cv[head], head))
    if vote_count == "keep_ties":
        count = int(((flat >= flat[order[count - 1]]) & present).sum())
    return order, count
