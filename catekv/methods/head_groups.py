"""Groups of heads that share pages of one length, as a serving system with ragged paging has them
(Tangram's cluster maps)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catekv.errors import UserError

SCOPES = ("global", "per_layer")


class HeadGroups(NamedTuple):
    """Cluster and column of every head, int32 [layers, kv_heads].

    ``waste`` is the share of the pages that holds nothing: every head of a cluster is as long as
    its longest.
    """

    cluster_of: Tensor
    column_of: Tensor
    waste: float


def group_heads(scores: Tensor, size: int, scope: str = "global") -> HeadGroups:
    """Put heads of like scores into clusters.

    Args:
        scores: [layers, kv_heads], e.g. the kept share of every head.
        size: heads per cluster; must divide the number of KV heads.
        scope: ``global``: heads of all layers by descending score, ties by (layer, head), cut into
            clusters; ``per_layer``: the same within each layer.

    Columns of a cluster follow (layer, head).

    Raises:
        UserError: a scope, size or score that cannot be.
    """
    if scope not in SCOPES:
        raise UserError(f"unknown scope {scope!r}; available: {', '.join(SCOPES)}")
    if scores.ndim != 2 or not bool(torch.isfinite(scores).all()):
        raise UserError("scores of heads must be finite numbers in the shape [layers, kv_heads]")
    layers, heads = scores.shape
    if size < 1 or heads % size:
        raise UserError(f"{heads} KV heads cannot be divided into clusters of {size}")
    rows = scores.double().reshape(1, -1) if scope == "global" else scores.double()
    order = rows.sort(dim=1, descending=True, stable=True).indices
    rank = order.argsort(dim=1)
    cluster = rank // size + torch.arange(len(rows))[:, None] * (rows.shape[1] // size)
    cluster = cluster.reshape(layers, heads)
    # the heads of a cluster in their own order
    by_cluster = cluster.flatten().sort(stable=True).indices
    column = torch.empty(layers * heads, dtype=torch.int64)
    column[by_cluster] = torch.arange(layers * heads) % size
    members = scores.double().flatten()[by_cluster].reshape(-1, size)
    room = float(size * members.amax(dim=1).sum())
    waste = 1 - float(members.sum()) / room if room else 0.0
    return HeadGroups(cluster.int(), column.reshape(layers, heads).int(), waste)
