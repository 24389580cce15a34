"""What SimCalKV builds on, measured: spread of attention, likeness of keys, sums of queries.

Functions over recorded tensors (:mod:`experiments.simcalkv.tensors`); the command is
:mod:`experiments.simcalkv.analyse_command`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.methods.simcalkv.merge import LOG_2
from experiments.simcalkv.tensors import LayerTensors, Recorded

#: queries whose attention is held at a time
_BLOCK = 256
BINS = 100
THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95)


def attention_rows(layer: LayerTensors, head: int, start: int, stop: int) -> Tensor:
    """Causal softmax attention of the queries ``start`` to ``stop`` of a query head:
    float32 [stop - start, tokens]."""
    keys = layer.keys[head // layer.group].float()
    logits = layer.queries[head, start:stop].float() @ keys.T * layer.scaling
    hidden = torch.arange(keys.shape[0]) > torch.arange(start, stop)[:, None]
    return logits.masked_fill(hidden.to(logits.device), -torch.inf).softmax(dim=-1)


def attention_histogram(layer: LayerTensors, head: int, bins: int = BINS) -> Tensor:
    """How many visible weights of a query head lie in each of ``bins`` equal parts of [0, 1]:
    int64 [bins]."""
    tokens = layer.keys.shape[1]
    counts = torch.zeros(bins, dtype=torch.int64)
    for start in range(0, tokens, _BLOCK):
        stop = min(tokens, start + _BLOCK)
        weights = attention_rows(layer, head, start, stop).cpu()
        seen = weights[torch.arange(tokens) <= torch.arange(start, stop)[:, None]]
        counts += (seen * bins).long().clamp(max=bins - 1).bincount(minlength=bins)
    return counts


def attention_map(layer: LayerTensors, head: int, size: int = 512) -> Tensor:
    """Attention map of a query head, float32 [size, size] at most: of several neighbouring queries
    and keys the largest weight."""
    tokens = layer.keys.shape[1]
    step = math.ceil(tokens / size)
    rows = []
    for start in range(0, tokens, step):
        block = attention_rows(layer, head, start, min(tokens, start + step)).cpu()
        rows.append(_pooled(block.amax(dim=0), step))
    return torch.stack(rows)


def _pooled(values: Tensor, step: int) -> Tensor:
    padded = F.pad(values, (0, -len(values) % step))
    return padded.view(-1, step).amax(dim=1)


@dataclass(frozen=True, eq=False)
class KeyMaps:
    """Cosines and Euclidean distances of all keys of a head: float32 [tokens, tokens]."""

    cosine: Tensor
    distance: Tensor


def key_maps(layer: LayerTensors, kv_head: int) -> KeyMaps:
    """Both maps of one KV head."""
    keys = layer.keys[kv_head].float().cpu()
    unit = F.normalize(keys, dim=-1)
    return KeyMaps(unit @ unit.T, torch.cdist(keys, keys))


def most_similar(cosine: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
    """For every key the ``count`` others with the largest cosine: cosines and positions
    [tokens, count], best first; fewer where there are fewer tokens."""
    others = cosine.clone().fill_diagonal_(-torch.inf)
    found = others.topk(min(count, len(cosine) - 1), dim=1)
    return found.values, found.indices


@dataclass(frozen=True)
class SimilarShare:
    """How alike the keys of one head are.

    Attributes:
        pairs: share of all pairs of different keys whose cosine exceeds each threshold.
        nearest: share of the keys whose most similar other key exceeds it.
    """

    layer: int
    kv_head: int
    pairs: tuple[float, ...]
    nearest: tuple[float, ...]


def similar_shares(
    recorded: Recorded, thresholds: Sequence[float] = THRESHOLDS
) -> list[SimilarShare]:
    """Of every layer and KV head."""
    found = []
    for index, layer in recorded.layers.items():
        for head in range(layer.keys.shape[0]):
            pairs, nearest = _shares(layer.keys[head], thresholds)
            found.append(SimilarShare(index, head, pairs, nearest))
    return found


def _shares(
    keys: Tensor, thresholds: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    unit = F.normalize(keys.float(), dim=-1)
    tokens = len(unit)
    counts = [0] * len(thresholds)
    best = []
    for start in range(0, tokens, _BLOCK):
        cosine = unit[start : start + _BLOCK] @ unit.T
        own = torch.arange(len(cosine))
        cosine[own, start + own] = -torch.inf
        counts = [
            count + int((cosine > threshold).sum())
            for count, threshold in zip(counts, thresholds, strict=True)
        ]
        best.append(cosine.amax(dim=1))
    most = torch.cat(best)
    return (
        tuple(count / max(1, tokens * (tokens - 1)) for count in counts),
        tuple(float((most > threshold).float().mean()) for threshold in thresholds),
    )


@dataclass(frozen=True)
class QuerySum:
    """The sum of a query's components over the decoded tokens, in one query head.

    ln 2 on every key coordinate adds ``ln 2 * sum * scaling`` to a logit, which is the wanted ln 2
    only where the sum is 1 / scaling (the square root of the head size).

    Attributes:
        mean, spread: of the sums (population standard deviation).
        shift: mean of what the constant adds to a logit. needed: the constant that would add ln 2
            at the mean sum, None where that is 0.
        steps: the sums, one per decoded token.
    """

    layer: int
    query_head: int
    mean: float
    spread: float
    shift: float
    needed: float | None
    steps: tuple[float, ...]


def query_sums(recorded: Recorded) -> list[QuerySum]:
    """Of every layer and query head, over the tokens behind the prompt."""
    found = []
    for index, layer in recorded.layers.items():
        sums = layer.queries[:, recorded.prompt_tokens :].float().sum(dim=-1)
        for head, own in enumerate(sums.cpu()):
            mean = float(own.mean())
            found.append(
                QuerySum(
                    index,
                    head,
                    mean,
                    float(own.std(correction=0)),
                    LOG_2 * mean * layer.scaling,
                    LOG_2 / (mean * layer.scaling) if mean else None,
                    tuple(own.tolist()),
                )
            )
    return found
