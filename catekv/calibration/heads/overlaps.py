"""HeteroCache's groups of heads: by the tokens that they look at while the model decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.cache.cache import uncompressed_layers
from catekv.calibration.heads.head_scores import Floats
from catekv.errors import UserError
from catekv.evaluation.options import COUNT, option
from catekv.kernels.logits import softmax_with_sink
from catekv.methods.base import Needs, Observed

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: Neighbours over which attention is averaged before the most attended tokens are taken.
_POOL = 5
#: Added to a stability before its inverse is a share.
_LEAST = 1e-6


@dataclass(frozen=True)
class OverlapSettings:
    """How heads are grouped; the published settings where a text is as long."""

    top: int | None = option(
        None,
        "most attended tokens of a head that are compared (default: a fifth of --length; "
        "published: 1024 of 5000)",
        **COUNT,
    )
    steps: int = option(100, "tokens that the model goes on with (default: {default})", **COUNT)
    stable: float = option(
        0.5, "overlap with the prompt's tokens from which a head is an anchor", least=0, most=1
    )
    similar: float = option(
        0.5, "overlap at the last step from which heads of a layer are alike", least=0, most=1
    )
    keep: float = option(
        0.5, "share of all entries that the scores split (default: {default})", least=0, most=1
    )


@dataclass(frozen=True, eq=False)
class HeadGroups:
    """Heads of one layer.

    Attributes:
        stability: float64 [heads], overlap of the tokens at a step with the prompt's, the median.
        classes: of each: ``pivot``, ``satellite`` (follows a pivot), ``anchor``, ``volatile``.
        groups: satellites of every pivot.
    """

    stability: Tensor
    classes: tuple[str, ...]
    groups: dict[int, list[int]]

    @property
    def whole(self) -> Tensor:
        """Which heads keep everything: bool [heads]."""
        return torch.tensor([name in ("pivot", "volatile") for name in self.classes])


def group_heads(prefill: Tensor, decode: Tensor, stable: float, similar: float) -> HeadGroups:
    """Groups from the most attended tokens of the heads of a layer.

    Heads whose tokens at the last step overlap by ``similar`` are neighbours. Those with most
    neighbours first, each takes all that are free as its satellites; ties: lower index. What is
    left is an anchor from a stability of ``stable`` on.

    Args:
        prefill: int64 [heads, top], of the prompt's last query. decode: [steps, heads, top].
    """
    steps, heads, top = decode.shape
    tokens = 1 + int(max(prefill.max(), decode.max()))
    first = torch.zeros(heads, tokens).scatter(1, prefill, 1.0)
    later = torch.zeros(steps, heads, tokens).scatter(2, decode, 1.0)
    stability = ((later * first).sum(dim=-1) / top).double().quantile(0.5, dim=0)
    alike = later[-1] @ later[-1].T / top >= similar - 1e-6
    alike.fill_diagonal_(False)
    groups: dict[int, list[int]] = {}
    taken: set[int] = set()
    for head in alike.sum(dim=1).sort(descending=True, stable=True).indices.tolist():
        free = [one for one in alike[head].nonzero()[:, 0].tolist() if one not in taken]
        if head not in taken and free:
            groups[head] = free
            taken |= {head, *free}
    followers = {one for members in groups.values() for one in members}
    rest = ["anchor" if value >= stable - 1e-9 else "volatile" for value in stability.tolist()]
    classes = tuple(
        "pivot" if head in groups else "satellite" if head in followers else rest[head]
        for head in range(heads)
    )
    return HeadGroups(stability, classes, groups)


def kept_tokens(stability: Tensor, whole: Tensor, keep: float, tokens: int) -> tuple[Tensor, int]:
    """Shares of the heads [layers, kv_heads] that do not keep everything, 1 on average and -1 for
    the others, and the tokens that a share of 1 is: what is least stable gets most.

    Args:
        stability: float64. whole: bool, heads that keep everything. keep: share of all entries.

    Raises:
        UserError: the heads that keep everything are more than that share.
    """
    heads, full = whole.numel(), int(whole.sum())
    if keep * heads <= full:
        raise UserError(
            f"{full} of {heads} heads keep everything, and a share of {keep:g} holds "
            f"{keep * heads:g}; raise --keep above {full / heads:.2f}, or --similar and --stable"
        )
    shares = torch.full(whole.shape, -1.0, dtype=torch.float64)
    if full == heads:
        return shares, tokens
    inverse = 1 / (stability[~whole] + _LEAST)
    shares[~whole] = inverse / inverse.mean()
    return shares, int((keep * heads - full) * tokens / (heads - full) + 1e-9)


def most_attended(observed: Observed, prompt: int, top: int) -> Tensor:
    """The ``top`` prompt tokens that each query of the window looks at most, by KV head: int64
    [queries, kv_heads, top]; softmax over the prompt, mean over the group, pooled."""
    keys = observed.keys[0, :, :prompt].float()
    queries = observed.queries[0].float().unflatten(0, (len(keys), -1)) * observed.scaling
    found = []
    for one in queries.unbind(dim=2):
        logits = observed.form.cap_(one @ keys.transpose(1, 2))
        sink = observed.form.sinks
        if sink is not None:
            sink = sink.view(len(keys), -1, 1)
        attention = softmax_with_sink(logits, sink).mean(dim=1)
        pooled = F.avg_pool1d(attention, _POOL, stride=1, padding=_POOL // 2)
        found.append(pooled.sort(dim=-1, descending=True, stable=True).indices[:, :top])
    return torch.stack(found)


def score_by_overlaps(
    model: CateKVModel,
    texts: Sequence[Sequence[int]],
    settings: OverlapSettings,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Floats, dict[str, Floats]]:
    """What every head keeps of each text, as a share of it: float64 [texts, layers, kv_heads], with
    its ``stability`` and its ``group``: the pivot that it follows, or itself if it is one, else -1.

    Raises:
        UserError: layers that are not compressed, a text within ``top``, or see
            :func:`kept_tokens`.
    """
    plain = uncompressed_layers(model.config)
    if plain:
        raise UserError(
            f"{plain} of this model are not compressed; heads are grouped in models whose layers "
            "all attend to the whole context"
        )
    tables = []
    for ids in texts:
        groups = _groups_of(model, list(ids), settings)
        stability = torch.stack([one.stability for one in groups])
        whole = torch.stack([one.whole for one in groups])
        shares, base = kept_tokens(stability, whole, settings.keep, len(ids))
        kept = (shares * base).floor().clamp(max=len(ids)) / len(ids)
        follows = torch.full(whole.shape, -1.0, dtype=torch.float64)
        for row, one in zip(follows, groups, strict=True):
            for pivot, members in one.groups.items():
                row[[pivot, *members]] = pivot
        tables.append((kept.masked_fill(whole, 1.0), stability, follows))
        progress()
    scores, stable, followed = (np.stack([*part]) for part in zip(*tables, strict=True))
    return scores, {"stability": stable, "group": followed}


def _groups_of(model: CateKVModel, ids: list[int], settings: OverlapSettings) -> list[HeadGroups]:
    """Groups of all layers by one text, and the tokens that the model goes on with."""
    top = settings.top or max(1, len(ids) // 5)
    if top >= len(ids):
        raise UserError(
            f"the {top} most attended tokens are all of a text of {len(ids)}; give a smaller --top "
            "or a larger --length"
        )
    context = model.prefill(ids, method="full")
    more = model.generate_ids([], context, settings.steps, []).tokens
    dense = model.observe(ids + more, needs=Needs(window=len(more) + 1))
    found = []
    for layer in range(model.shape.layers):
        tokens = most_attended(dense.observed(layer), len(ids), top).cpu()
        found.append(group_heads(tokens[0], tokens[1:], settings.stable, settings.similar))
    return found
