"""KeepKV's formulas: moving averages of attention scores, and merges of entries with votes.

Scores ``exp(logit)``, weights and votes are kept as logs, so that nothing overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.methods.formulas.merging import group_mean, group_shares, group_sum

#: A mean log-score below this in size cannot be divided by: the plain mean of the keys is taken.
LEAST_LOG_SCORE = 1e-3


def updated_average(log_average: Tensor, log_scores: Tensor, alpha: float) -> Tensor:
    """Log of ``alpha * average + (1 - alpha) * scores``."""
    return torch.logaddexp(log_average + math.log(alpha), log_scores + math.log1p(-alpha))


def corrected_average(log_average: Tensor, steps: Tensor, alpha: float) -> Tensor:
    """Log of ``average / (1 - alpha ** steps)``: the average of ``steps`` scores from 0 on."""
    return log_average - torch.log1p(-torch.pow(alpha, steps.float()))


def window_average(
    queries: Tensor, keys: Tensor, positions: Tensor, tokens: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """Moving average of the scores ``exp(logit)`` over the window's queries, oldest first.

    Args:
        queries: [group, window, head_dim], scaled: the last ``window`` of ``tokens`` queries. The
            scores of a group are averaged.
        keys: [entries, head_dim]; positions: int64 [entries], entries are seen from there on.

    Returns:
        Log of the average float32 [entries], not corrected, and how many queries saw each entry.
    """
    window = queries.shape[1]
    logits = queries.float() @ keys.float().T
    scores = logits.logsumexp(dim=0) - math.log(queries.shape[0])
    asked = torch.arange(tokens - window, tokens, device=keys.device)
    weight = (tokens - 1 - asked) * math.log(alpha) + math.log1p(-alpha)
    hidden = positions > asked[:, None]
    log_average = (scores + weight[:, None]).masked_fill(hidden, -torch.inf).logsumexp(dim=0)
    return log_average, (~hidden).sum(dim=0)


def zip_factor(log_weight: Tensor, log_votes: Tensor, mean_log_score: Tensor) -> Tensor:
    """What the mean key of merged entries is multiplied by, so that ``votes * exp(logit)`` of the
    result is the sum of the weights; 1 where that cannot be (logits around 0)."""
    wanted = log_weight - log_votes
    factor = wanted / mean_log_score
    possible = (mean_log_score.abs() > LEAST_LOG_SCORE) & (factor > 0) & factor.isfinite()
    return torch.where(possible, factor, 1.0)


@dataclass(frozen=True, eq=False)
class ZipMerge:
    """Kept entries after merging: ``keys``, ``values`` [kept, dim], ``log_votes`` [kept]."""

    keys: Tensor
    values: Tensor
    log_votes: Tensor


def zip_merge(
    own: tuple[Tensor, Tensor, Tensor, Tensor],
    leaving: tuple[Tensor, Tensor, Tensor, Tensor],
    target: Tensor,
    merged: Tensor,
) -> ZipMerge:
    """Merge leaving entries into kept ones, several into one by sums over all of them.

    Args:
        own, leaving: keys, values [entries, dim], log-votes and log-scores float32 [entries].
        target: int64 [leaving]; merged: bool [leaving].
    """
    keys, values, log_votes, log_scores = own
    left_keys, left_values, left_votes, left_scores = leaving
    shares = group_shares(log_votes + log_scores, left_votes + left_scores, target, merged)
    votes = group_shares(log_votes, left_votes, target, merged)[2]
    mean_score = group_sum(shares[0] * log_scores, shares[1] * left_scores, target)
    new_keys = group_mean(keys, left_keys, target, shares[:2])
    new_keys *= zip_factor(shares[2], votes, mean_score)[:, None]
    new_values = group_mean(values, left_values, target, shares[:2])
    touched = group_sum(torch.zeros_like(log_votes), merged.float(), target)[:, None] > 0
    return ZipMerge(
        torch.where(touched, new_keys.to(keys.dtype), keys),
        torch.where(touched, new_values.to(values.dtype), values),
        votes,
    )
