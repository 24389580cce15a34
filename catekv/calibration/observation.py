"""Head typing by coefficient of variation, and the vote that turns it into a head mask.

CateKV (ICML 2025), section 3.2, and its release. An observation matrix holds the attention of the
last prompt queries over the prompt's middle; entries above a threshold are hits, counted per chunk
or per token over the queries. Where all queries hit the same places the counts vary much (high
coefficient of variation, consistent head); where every query looks elsewhere they are even (low,
adaptive head). All functions are stateless and exact for any prompt length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.window_statistics import count_hits, order_statistics
from catekv.methods.prompt_layout import (
    ROUNDING_GUARD,
    VARIANTS,
    PromptLayout,
    init_tokens_of,
    prompt_layout,
    recent_tokens_of,
)

HIT_UNITS = ("chunk", "token")
THRESHOLDS = ("span", "quantile")
COMPARISONS = ("ge", "gt")
DEVIATIONS = ("sample", "population")

#: Smallest threshold of the ``span`` rule.
LOWEST_THRESHOLD = 1e-9


@dataclass(frozen=True)
class CVConfig:
    """Options of the observation. None means the value of the variant.

    Args:
        k: quantile of the observation matrix, in (0, 1).
        alpha: scale of the threshold, in (0, 1].
        chunk_size: tokens per chunk.
        window: L, last prompt queries observed.
        init_tokens, recent_tokens, guard_tokens: edges that are not observed, in tokens
            (:func:`prompt_layout`); by default they follow the budget, as in
            :class:`catekv.methods.catekv.CateKV`.
        variant: ``official`` (as released) or ``paper`` (as printed).
        hit_unit: ``chunk``: a query hits a chunk if any of its tokens is above the threshold
            (official); ``token`` (paper).
        threshold: ``span``: ``max(hi - (1 - alpha) * (hi - lo), 1e-9)`` with the k and 1 - k
            quantiles hi and lo (official); ``quantile``: ``alpha * hi`` (paper).
        comparison: ``ge`` or ``gt``; what equals the threshold is a hit (both variants).
        std: ``sample`` (official) or ``population`` (paper).
        budget: b, which edges that are not given follow.

    Raises:
        UserError: a value outside its range or an unknown option.
    """

    k: float = 0.99
    alpha: float = 1.0
    chunk_size: int = 8
    window: int = 64
    init_tokens: int | None = None
    recent_tokens: int | str | None = None
    guard_tokens: int = 32
    variant: str = "official"
    hit_unit: str | None = None
    threshold: str | None = None
    comparison: str | None = None
    std: str | None = None
    budget: int = 2048

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UserError(f"unknown variant {self.variant!r}; use {' or '.join(VARIANTS)}")
        official = self.variant == "official"
        for name, allowed, default in (
            ("hit_unit", HIT_UNITS, "chunk" if official else "token"),
            ("threshold", THRESHOLDS, "span" if official else "quantile"),
            ("comparison", COMPARISONS, "ge"),
            ("std", DEVIATIONS, "sample" if official else "population"),
        ):
            value = getattr(self, name)
            value = default if value is None else value
            if value not in allowed:
                raise UserError(f"unknown {name} {value!r}; use {' or '.join(allowed)}")
            object.__setattr__(self, name, value)
        if not 0 < self.k < 1:
            raise UserError(f"k {self.k} is outside (0, 1); it is a quantile such as 0.99")
        if not 0 < self.alpha <= 1:
            raise UserError(f"alpha {self.alpha} is outside (0, 1]; it scales the threshold")
        init = init_tokens_of(self.init_tokens, self.budget)
        object.__setattr__(self, "init_tokens", init)
        for name, least in (
            ("chunk_size", 1),
            ("window", 1),
            ("init_tokens", 0),
            ("guard_tokens", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} must be at least {least}")
        recent = recent_tokens_of(self.recent_tokens, self.variant, self.budget)
        object.__setattr__(self, "recent_tokens", recent)

    def layout(self, tokens: int) -> PromptLayout:
        """Edges and observed middle of a prompt of ``tokens`` tokens."""
        init, recent = self.edges
        return prompt_layout(tokens, self.chunk_size, init, recent, self.guard_tokens)

    @property
    def edges(self) -> tuple[int, int]:
        """Initial and recent tokens."""
        assert isinstance(self.init_tokens, int)
        assert isinstance(self.recent_tokens, int)
        return self.init_tokens, self.recent_tokens

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What the observation matrix depends on; equal geometries share one matrix."""
        return (
            self.chunk_size,
            self.window,
            self.init_tokens,
            self.recent_tokens,
            self.guard_tokens,
        )

    def with_values(self, **changes: Any) -> CVConfig:
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Observation:
    """Statistics of observation matrices, leading dimensions as observed ([batch, kv_heads]).

    ``threshold`` fp64 [...], ``hits`` int64 [..., chunks or tokens], ``cv`` fp64 [...].
    """

    threshold: Tensor
    hits: Tensor
    cv: Tensor


def coefficient_of_variation(hits: Tensor, std: str = "sample") -> Tensor:
    """Standard deviation over mean along the last dimension, fp64; 0 where nothing was hit."""
    counts = hits.double()
    mean = counts.mean(dim=-1)
    correction = 1 if std == "sample" else 0
    if counts.shape[-1] <= correction:
        return torch.zeros_like(mean)
    deviation = counts.std(dim=-1, correction=correction)
    return torch.where(mean > 0, deviation / mean.clamp_min(torch.finfo(mean.dtype).tiny), 0.0)


def _snap(rank: float) -> float:
    """A rank that misses an integer only by floating-point error becomes that integer."""
    nearest = float(round(rank))
    return nearest if math.isclose(rank, nearest, rel_tol=1e-14, abs_tol=ROUNDING_GUARD) else rank


def _round_to_fp32(values: Tensor, up: bool) -> Tensor:
    """Nearest fp32 number not below (``up``) or not above fp64 ``values``.

    Comparing fp32 numbers with it gives the same answers as comparing them with ``values``.
    """
    rounded = values.float()
    limit = torch.full_like(rounded, torch.inf if up else -torch.inf)
    wrong = rounded.double() < values if up else rounded.double() > values
    return torch.where(wrong, torch.nextafter(rounded, limit), rounded)


def _positions(points: Sequence[float], count: int) -> list[int]:
    """Order statistics that the quantiles of ``count`` values lie between, ascending."""
    floors = [math.floor(_snap(point * (count - 1))) for point in points]
    return sorted({min(p, count - 1) for floor in floors for p in (floor, floor + 1)})


def _interpolate(
    statistics: Tensor, positions: Sequence[int], points: Sequence[float], count: int
) -> list[Tensor]:
    """Quantiles fp64 [rows] at each point from the order statistics [rows, positions]."""
    statistics = statistics.double()
    column = {position: index for index, position in enumerate(positions)}
    found = []
    for point in points:
        rank = _snap(point * (count - 1))
        floor = math.floor(rank)
        below = statistics[:, column[floor]]
        above = statistics[:, column[min(floor + 1, count - 1)]]
        found.append(below + (above - below) * (rank - floor))
    return found


def quantiles(values: Tensor, points: Sequence[float]) -> list[Tensor]:
    """Quantiles of each row with linear interpolation, for any number of values.

    Equal to ``torch.quantile(row, points)`` in exact arithmetic, without its limit of 2^24 values.
    Two equal neighbours give exactly their value.

    Args:
        values: fp32 [rows, values].
        points: quantiles in [0, 1].

    Returns:
        One fp64 [rows] tensor per point.
    """
    count = values.shape[-1]
    positions = _positions(points, count)
    return _interpolate(order_statistics(values, positions), positions, points, count)


@dataclass(frozen=True)
class _Thresholds:
    """How the thresholds of several configurations come from ``count`` values of a row."""

    configs: tuple[CVConfig, ...]
    count: int

    @property
    def points(self) -> list[float]:
        return sorted({k for c in self.configs for k in (c.k, 1 - c.k)})

    @property
    def positions(self) -> list[int]:
        """Order statistics that are needed."""
        return _positions(self.points, self.count)

    @property
    def units(self) -> list[int]:
        """Tokens per unit of hits, for each configuration."""
        return [c.chunk_size if c.hit_unit == "chunk" else 1 for c in self.configs]

    def of(self, statistics: Tensor) -> list[Tensor]:
        """Thresholds fp64 [rows] of each configuration from statistics [rows, positions]."""
        points = self.points
        at = _interpolate(statistics, self.positions, points, self.count)
        values = dict(zip(points, at, strict=True))
        found = []
        for config in self.configs:
            high = values[config.k]
            if config.threshold == "span":
                low = values[1 - config.k]
                threshold = high - (1 - config.alpha) * (high - low)
                found.append(threshold.clamp_min(LOWEST_THRESHOLD))
            else:
                found.append(config.alpha * high)
        return found

    def limits(self, statistics: Tensor) -> Tensor:
        """The least fp32 number that is a hit: [rows, configurations]."""
        found = []
        for config, threshold in zip(self.configs, self.of(statistics), strict=True):
            if config.comparison == "ge":
                found.append(_round_to_fp32(threshold, up=True))
            else:
                below = _round_to_fp32(threshold, up=False)
                found.append(torch.nextafter(below, torch.full_like(below, torch.inf)))
        return torch.stack(found, dim=-1)

    def observations(self, statistics: Tensor, hits: Sequence[Tensor]) -> list[Observation]:
        """From statistics [..., positions] and each configuration's hits [..., units]."""
        lead = statistics.shape[:-1]
        thresholds = self.of(statistics.reshape(-1, statistics.shape[-1]))
        found = []
        for config, threshold, counts in zip(self.configs, thresholds, hits, strict=True):
            assert config.std is not None
            cv = coefficient_of_variation(counts, config.std)
            found.append(Observation(threshold.reshape(lead), counts.long(), cv))
        return found


def observe_attention_many(attention: Tensor, configs: Sequence[CVConfig]) -> list[Observation]:
    """Several configurations on the same observation matrices, sharing the costly parts.

    Args:
        attention: [..., window, tokens]; probabilities of the middle tokens, or any scores.
        configs: options; only ``chunk_size`` must be the same in all.

    Returns:
        One :class:`Observation` per configuration.
    """
    if attention.dim() < 2 or 0 in attention.shape[-2:]:
        raise UserError(
            f"an observation matrix has the shape [..., window, tokens] with at least one of each, "
            f"not {list(attention.shape)}"
        )
    if len({config.chunk_size for config in configs}) > 1:
        raise UserError("configurations that share an observation need one chunk_size")
    matrices = attention.float().reshape(-1, *attention.shape[-2:])
    lead = attention.shape[:-2]
    rule = _Thresholds(tuple(configs), matrices.shape[1:].numel())
    statistics = order_statistics(matrices.flatten(1), rule.positions)
    hits = count_hits(matrices, rule.limits(statistics), rule.units)
    return rule.observations(
        statistics.reshape(*lead, -1), [counts.reshape(*lead, -1) for counts in hits]
    )


def observe_attention(attention: Tensor, config: CVConfig) -> Observation:
    """Statistics of given observation matrices [..., window, middle tokens].

    For a single head's matrix the threshold and the CV are 0-dimensional.
    """
    return observe_attention_many(attention, [config])[0]


def observe_many(
    queries: Tensor,
    keys: Tensor,
    configs: Sequence[CVConfig],
    *,
    scaling: float | None = None,
    valid: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> list[Observation]:
    """:func:`observe` for several configurations of equal geometry at the cost of about one.

    The attention matrix and the order statistics of a head are computed once, one block of heads
    at a time, and dropped.
    """
    if not configs:
        return []
    if len({config.geometry for config in configs}) > 1:
        raise UserError(
            "configurations that share an observation must agree in chunk_size, window, "
            "init_tokens, recent_tokens and guard_tokens"
        )
    batch, heads, _, dim = keys.shape
    if queries.shape[0] != batch or queries.shape[-1] != dim or queries.shape[1] % heads:
        raise UserError(
            f"queries {list(queries.shape)} do not fit keys {list(keys.shape)}; expected [batch, "
            "query_heads, tokens, head_dim] with query_heads a multiple of KV heads"
        )
    scaling = dim**-0.5 if scaling is None else scaling
    if valid is not None and not bool(valid.all()):
        rows = [
            _observe_unpadded(row_queries, row_keys, configs, scaling, form)
            for row_queries, row_keys in _without_padding(queries, keys, valid)
        ]
        return [_stack([row[i] for row in rows]) for i in range(len(configs))]
    return _observe_unpadded(queries, keys, configs, scaling, form)


def observe(
    queries: Tensor,
    keys: Tensor,
    config: CVConfig,
    *,
    scaling: float | None = None,
    valid: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> Observation:
    """Threshold, hits and CV of every KV head of one layer.

    Args:
        queries: [batch, query_heads, tokens or window, head_dim], post-rotary; the last ``window``
            are used.
        keys: [batch, kv_heads, tokens, head_dim], post-rotary.
        config: options.
        scaling: factor of the logits; default ``head_dim ** -0.5``.
        valid: bool [batch, tokens], False on padding. Rows with fewer units than the longest prompt
            have 0 in the last columns of ``hits``; their CV covers their own units only.
        form: soft cap and sinks of the logits.

    Returns:
        threshold [batch, kv_heads], hits [batch, kv_heads, chunks or middle tokens], cv
        [batch, kv_heads].

    Raises:
        UserError: shapes that do not fit, or a prompt too short to have a middle.
    """
    return observe_many(queries, keys, [config], scaling=scaling, valid=valid, form=form)[0]


def _without_padding(
    queries: Tensor, keys: Tensor, valid: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    for row in range(keys.shape[0]):
        columns = valid[row].nonzero().squeeze(-1)
        kept = min(queries.shape[2], len(columns))
        yield queries[row : row + 1, :, queries.shape[2] - kept :], keys[row : row + 1, :, columns]


def _stack(parts: list[Observation]) -> Observation:
    units = max(part.hits.shape[-1] for part in parts)
    hits = [torch.nn.functional.pad(p.hits, (0, units - p.hits.shape[-1])) for p in parts]
    return Observation(
        torch.cat([part.threshold for part in parts]),
        torch.cat(hits),
        torch.cat([part.cv for part in parts]),
    )


def _observe_unpadded(
    queries: Tensor, keys: Tensor, configs: Sequence[CVConfig], scaling: float, form: LogitForm
) -> list[Observation]:
    tokens = keys.shape[2]
    config = configs[0]
    layout = config.layout(tokens)
    if not layout.chunks:
        least = layout.chunk_size + config.edges[0] + config.guard_tokens
        raise UserError(
            f"a prompt of {tokens} tokens has no middle to observe: the edges take "
            f"{least - layout.chunk_size + int(config.recent_tokens or 0)} tokens; use longer "
            "reference texts or smaller init_tokens, recent_tokens and guard_tokens"
        )
    queries = queries[:, :, max(0, queries.shape[2] - config.window) :]
    start, stop = layout.middle_start, layout.middle_end
    rule = _Thresholds(tuple(configs), queries.shape[2] * (stop - start))
    statistics, hits = kernels.window_statistics(
        queries, keys, scaling, start, stop, rule.positions, rule.limits, rule.units, form=form
    )
    return rule.observations(statistics, hits)
