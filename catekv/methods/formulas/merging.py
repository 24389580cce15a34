"""Merging entries of one row into others: who goes where, and what becomes of keys and values.

Pure functions in float32 over one row (sequence, KV head). ``leaving`` entries are given in the
order in which they leave; those that are not merged are dropped. Nothing of size leaving x kept is
held: similarities are made in blocks of at most :data:`BLOCK_BYTES`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Upper bound on the bytes of one block of similarities. The peak of :func:`nearest_kept` is one
#: block and a float32 copy of the row's keys.
BLOCK_BYTES = 32 * 2**20
_COLUMNS = 64
#: What a product of a ratio and a number of tokens may lack to the next whole number.
GUARD = 1e-9


def removed_count(tokens: int, ratio: float) -> int:
    """Tokens that a removed share means: the decimal floor (29 of 100 at 0.29, where the nearest
    binary number is a little less), at least one unless the ratio is 0, and all of them at 1."""
    if not ratio:
        return 0
    return min(tokens, max(1, math.floor(tokens * ratio + GUARD)))


def nearest_kept(leaving: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """For every leaving key the kept key with the largest cosine; ties go to the lower index.

    Args:
        leaving: [leaving, head_dim]; kept: [kept, head_dim], at least one.

    Returns:
        Index into ``kept`` int64 [leaving], and the cosine float32 [leaving].
    """
    count, device = kept.shape[0], kept.device
    # whole groups of columns: finding the place of a maximum is slow over long rows
    toward = torch.zeros(count + -count % _COLUMNS, kept.shape[1], device=device)
    toward[:count] = kept
    lengths = torch.linalg.vector_norm(toward, dim=-1, keepdim=True)
    toward /= lengths.clamp_(min=torch.finfo(torch.float32).tiny)
    step = min(len(leaving), max(1, BLOCK_BYTES // (4 * toward.shape[0])))
    # one buffer for all blocks: made anew each time, they would leave holes in the heap
    buffer = torch.empty(step, toward.shape[0], device=device)
    target = torch.empty(len(leaving), dtype=torch.int64, device=device)
    cosine = torch.empty(len(leaving), device=device)
    rows = torch.arange(step, device=device)
    for start in range(0, len(leaving), max(1, step)):
        block = F.normalize(leaving[start : start + step].float(), dim=-1)
        similarity = torch.mm(block, toward.T, out=buffer[: len(block)])
        similarity[:, count:] = -torch.inf
        groups = similarity.unflatten(1, (-1, _COLUMNS))
        group = groups.amax(dim=-1).argmax(dim=-1)
        best = groups[rows[: len(block)], group].max(dim=-1)
        torch.add(group * _COLUMNS, best.indices, out=target[start : start + len(block)])
        cosine[start : start + len(block)] = best.values
    return target, cosine


def group_sum(own: Tensor, added: Tensor, target: Tensor) -> Tensor:
    """``own`` [kept, ...] plus what was ``added`` [leaving, ...] to each."""
    return own.index_add(0, target, added)


def group_count(target: Tensor, merged: Tensor, kept: int) -> Tensor:
    """How many entries were merged into each kept one, float32 [kept]."""
    nothing = torch.zeros(kept, device=target.device)
    return group_sum(nothing, merged.float(), target)


def group_shares(
    own: Tensor, added: Tensor, target: Tensor, merged: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of log-weights within each group (a kept entry and what is merged into it).

    Args:
        own: log-weights [kept]; added: log-weights [leaving].
        target: int64 [leaving]; merged: bool [leaving].

    Returns:
        Shares of the kept entries [kept] and of the leaving ones [leaving] (0 where dropped), and
        the log of every group's total weight [kept].
    """
    added = added.masked_fill(~merged, -torch.inf)
    top = own.scatter_reduce(0, target, added, "amax")
    own_weight, added_weight = (own - top).exp(), (added - top[target]).exp()
    total = group_sum(own_weight, added_weight, target)
    return own_weight / total, added_weight / total[target], top + total.log()


def group_mean(own: Tensor, added: Tensor, target: Tensor, shares: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of vectors within each group: ``own`` [kept, dim], ``added`` [leaving, dim]; float32."""
    mean = own.to(torch.float32, copy=True).mul_(shares[0][:, None])
    return mean.index_add_(0, target, added.to(torch.float32, copy=True).mul_(shares[1][:, None]))


def sequential_shares(
    own: Tensor, added: Tensor, target: Tensor, merged: Tensor
) -> tuple[Tensor, Tensor]:
    """Shares of a mean that is updated entry by entry: ``x <- (w_e x_e + w_c x) / (w_e + w_c)``.

    The kept entry's weight ``w_c`` stays what it was, so later entries weigh more.

    Args:
        own: log-weights [kept]; added: log-weights [leaving], in the order of merging.
        target: int64 [leaving]; merged: bool [leaving].

    Returns:
        Shares of the kept entries [kept] and of the leaving ones [leaving] (0 where dropped).
    """
    # log of the share that an entry takes, and of what it leaves to what was there before
    takes = F.logsigmoid(added - own[target]).masked_fill(~merged, -torch.inf)
    leaves = F.logsigmoid(own[target] - added).masked_fill(~merged, 0.0)
    remains = group_sum(torch.zeros_like(own), leaves, target)
    order = target.sort(stable=True).indices
    running = leaves.double()[order].cumsum(0)
    # what the entries of the same group that come later leave: the sum up to the group's end
    ends = target.bincount(minlength=own.shape[0]).cumsum(0) - 1
    later = torch.zeros_like(takes)
    later[order] = (running[ends[target[order]]] - running).float()
    return remains.exp(), (takes + later).exp()
