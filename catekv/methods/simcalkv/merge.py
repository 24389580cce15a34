"""SimCalKV's merge of one row: who is removed, who takes it in, and what becomes of both.

Pure functions, section 1 of the method; :mod:`catekv.methods.simcalkv` has the options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.methods.formulas.merging import (
    group_count,
    group_mean,
    group_shares,
    nearest_kept,
    sequential_shares,
)

CALIBRATIONS = ("key_const", "logit", "none")
KEY_MEANS = ("half", "uniform")
ORDERS = ("batched", "sequential")
LOG_2 = math.log(2.0)
#: Where the released sequential merge cuts the logits of its value weights off, on both sides.
LARGEST_LOGIT = 50.0


@dataclass(frozen=True)
class MergeRule:
    """How entries are merged; see :class:`SimCalKV` for the options."""

    threshold: float = 0.0
    calibration: str = "key_const"
    key_mean: str = "half"
    merge_order: str = "batched"


@dataclass(frozen=True, eq=False)
class MergedRow:
    """One row after merging.

    ``keys``, ``values`` [kept, dim] and ``log_counts`` float32 [kept] (log of how many tokens an
    entry stands for) in prompt order; ``target`` (index into the kept entries), ``similarity`` and
    ``merged`` [removed] in the order of removal.
    """

    keys: Tensor
    values: Tensor
    log_counts: Tensor
    target: Tensor
    similarity: Tensor
    merged: Tensor


def removal_order(scores: Tensor, count: int, initial: int = 0, recent: int = 0) -> Tensor:
    """The ``count`` lowest scores [tokens] in ascending order, without the first ``initial`` and
    the last ``recent`` tokens; ties go to the lower index: int64 [count]."""
    middle = scores[initial : scores.shape[0] - recent]
    return middle.sort(stable=True).indices[:count] + initial


def normalised_by_queries(scores: Tensor) -> Tensor:
    """Column sums [..., tokens] divided by how many prompt queries see each token."""
    tokens = scores.shape[-1]
    return scores / torch.arange(tokens, 0, -1, device=scores.device)


def key_constant_shift(query_sum: float, head_dim: int) -> float:
    """What ln 2 added to every key coordinate adds to a logit (scaling ``head_dim ** -0.5``)."""
    return LOG_2 * query_sum / math.sqrt(head_dim)


def merge_row(
    keys: Tensor,
    values: Tensor,
    logits: Tensor,
    removed: Tensor,
    rule: MergeRule,
    log_counts: Tensor | None = None,
) -> MergedRow:
    """Merge the ``removed`` entries of a row into the others.

    Args:
        keys, values: [entries, dim].
        logits: float32 [entries], of the current query without biases; the values' log-weights.
        removed: int64 [removed], in ascending order of score.
        rule: how.
        log_counts: float32 [entries], log of the tokens that entries stand for already (the biases
            of an earlier merge); None: one each.
    """
    stays = torch.ones(keys.shape[0], dtype=torch.bool, device=keys.device)
    stays[removed] = False
    counts = torch.zeros_like(logits) if log_counts is None else log_counts
    kept = stays.nonzero().squeeze(-1)
    own_keys, own_values, own_counts = (part[kept] for part in (keys, values, counts))
    if not len(removed) or not len(own_keys):
        target = removed.new_zeros(len(removed))
        nothing = torch.zeros_like(target, dtype=torch.bool)
        return MergedRow(own_keys, own_values, own_counts, target, nothing.float(), nothing)
    left_keys, left_values, left_counts = keys[removed], values[removed], counts[removed]
    target, similarity = nearest_kept(left_keys, own_keys)
    merged = similarity > rule.threshold
    added = group_count(target, merged, len(own_keys))
    if rule.merge_order == "sequential":
        logits = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    # entries that already stand for several tokens weigh accordingly
    weights = (logits[kept] + own_counts, logits[removed] + left_counts)
    if rule.merge_order == "sequential":
        shares = sequential_shares(*weights, target, merged)
        equal = (torch.zeros_like(own_counts), torch.zeros_like(left_counts))
        key_shares = sequential_shares(*equal, target, merged)
        times = 2 * (1 - torch.exp2(-added))
    else:
        shares = group_shares(*weights, target, merged)[:2]
        key_shares = _key_shares(rule.key_mean, own_counts, left_counts, target, merged, added)
        times = (added > 0).float()
    # one after the other, so that a long row is held in float32 once; where nothing was merged the
    # share is 1, and what was in the row comes out of it unchanged
    mean = group_mean(own_keys, left_keys, target, key_shares)
    if rule.calibration == "key_const":
        mean += LOG_2 * times[:, None]
    new_keys = mean.to(keys.dtype)
    new_values = group_mean(own_values, left_values, target, shares).to(values.dtype)
    total = group_shares(own_counts, left_counts, target, merged)[2]
    return MergedRow(
        new_keys,
        new_values,
        total,
        target,
        similarity,
        merged,
    )


def _key_shares(
    mean: str, own: Tensor, left: Tensor, target: Tensor, merged: Tensor, added: Tensor
) -> tuple[Tensor, Tensor]:
    if mean == "uniform":
        return group_shares(own, left, target, merged)[:2]
    half = torch.where(added > 0, 0.5, 1.0)
    return half, merged.float() * 0.5 / added.clamp(min=1)[target]
