"""The option ``budgets``: how a method's tokens are split over layers and heads, interchangeable
between methods.

An allocator answers how many tokens every head keeps *outside* what its method always keeps. It is
written as a word (``pyramid``), a path, a table, or a dict with its ``kind`` and options; every
allocator is a frozen dataclass that ``to_dict`` turns back into such a dict.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.allocator_files import (
    read_allocator,
    read_budgets,
    read_scores,
    to_kv_heads,
)
from catekv.methods.formulas.budgets import (
    ROUNDINGS,
    SHORT_PROMPTS,
    STEPS,
    cokv_weights,
    combine_slices,
    headkv_quotas,
    largest_remainder,
    proportional,
    pyramid_budgets,
)
from catekv.methods.head_mask import HeadMask
from catekv.methods.loss_curves import LossCurves, read_curves
from catekv.methods.options import assign, check_options, method_option
from catekv.methods.registry import nearest
from catekv.models.shape import ModelShape, model_shape_of, refuse_other_extents

_FILES = (".json", ".yaml", ".yml")
SLICE_SCALINGS = ("none", "zscore")
_NEEDS_ALL_HEADS = (
    "budgets of kind {!r} compare all heads, which no process of a tensor-parallel group has; "
    "write the budgets into a table (CSV) and give that"
)


@dataclass(frozen=True)
class Demand:
    """What is to be split.

    Attributes:
        budget: tokens per head, on average, outside what is always kept.
        tokens: length of the prompt.
        edges: tokens that every head always keeps.
        shape: the model.
    """

    budget: int
    tokens: int
    edges: int
    shape: ModelShape

    @property
    def room(self) -> int:
        """The most tokens a head can keep outside the edges."""
        return max(0, self.tokens - self.edges)

    @property
    def heads(self) -> int:
        return self.shape.layers * self.shape.kv_heads


def refuse_beyond_room(demand: Demand, total: int) -> None:
    """Raise ``UserError`` for more tokens than a prompt has outside the edges."""
    if not 0 <= total <= demand.room * demand.heads:
        raise UserError(
            f"cannot split {total} tokens outside the {demand.edges} always kept: the prompt "
            f"has {demand.room} such tokens in each of {demand.heads} heads; change the total"
        )


def refuse_other_configuration(what: str, made_for: str | None, shape: ModelShape) -> None:
    """Raise ``UserError`` where a file says that it was made with a model of another configuration
    (:func:`catekv.models.shape.config_hash`)."""
    if made_for and shape.config_hash and made_for != shape.config_hash:
        raise UserError(
            f"{what} were made with a model of configuration {made_for}, this one has "
            f"{shape.config_hash}; use those of this model"
        )


@dataclass(frozen=True)
class Budgets:
    """Base of the allocators."""

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_options(self.kind, self)

    def validate(self, shape: ModelShape) -> None:
        """Raise ``UserError`` if the allocator was made for a model of another shape."""

    def table(self, demand: Demand) -> Tensor:
        """Tokens per head outside the edges, at most ``demand.room``: int64 [layers, kv_heads]."""
        raise NotImplementedError

    def weights(self, demand: Demand) -> Tensor:
        """What :meth:`exact_table` splits a total in proportion to: [layers, kv_heads]."""
        return self.table(demand)

    def exact_table(self, demand: Demand, total: int) -> Tensor:
        """Like :meth:`table`, with the sum ``total`` whatever the budget.

        Raises:
            UserError: the prompt does not have so many tokens.
        """
        refuse_beyond_room(demand, total)
        demand = dataclasses.replace(demand, budget=max(1, total // demand.heads))
        weights = self.weights(demand)
        return proportional(weights, total, "largest_remainder", demand.room, redistribute=True)

    def for_heads(self, heads: slice) -> Budgets:
        """The allocator for some of the model's KV heads (tensor parallelism)."""
        return self

    def to_dict(self) -> dict[str, Any]:
        options = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {"kind": self.kind, **options}


@dataclass(frozen=True)
class Uniform(Budgets):
    """Every head gets the budget."""

    kind: ClassVar[str] = "uniform"

    def table(self, demand: Demand) -> Tensor:
        shape = (demand.shape.layers, demand.shape.kv_heads)
        return torch.full(shape, min(demand.budget, demand.room))


@dataclass(frozen=True)
class Pyramid(Budgets):
    """More tokens for lower layers (PyramidKV); options as in
    :func:`catekv.methods.formulas.budgets.pyramid_budgets`."""

    kind: ClassVar[str] = "pyramid"

    beta: float = method_option(20, least=1)
    short_prompt: str = method_option("uniform", words=SHORT_PROMPTS)
    step: str = method_option("integer", words=STEPS)
    rescale: bool = False

    def table(self, demand: Demand) -> Tensor:
        options = (self.beta, self.short_prompt, self.step, self.rescale)
        layers = pyramid_budgets(
            demand.budget, demand.shape.layers, demand.tokens, demand.edges, *options
        )
        return layers[:, None].repeat(1, demand.shape.kv_heads)


@dataclass(frozen=True)
class Table(Budgets):
    """An explicit number of tokens for every head.

    Args:
        counts: integers [layers, kv_heads]; a single row holds for every layer. A path is read
            (CSV, or npz with ``budgets``).
    """

    kind: ClassVar[str] = "table"

    counts: Any = method_option(None, convert=read_budgets)

    @property
    def tensor(self) -> Tensor:
        return torch.tensor(self.counts, dtype=torch.int64)

    def validate(self, shape: ModelShape) -> None:
        layers, heads = len(self.counts), len(self.counts[0])
        if (layers, heads) != (1, shape.kv_heads):
            refuse_other_extents(
                "the budget table has",
                (layers, heads),
                model_shape_of(shape),
                "give one row per layer and one number per KV head",
            )

    def table(self, demand: Demand) -> Tensor:
        self.validate(demand.shape)
        return self.tensor.clamp(max=demand.room).repeat(demand.shape.layers, 1)[
            : demand.shape.layers
        ]

    def for_heads(self, heads: slice) -> Table:
        return Table([row[heads] for row in self.counts])


@dataclass(frozen=True)
class Mask(Budgets):
    """Adaptive heads of a head mask keep everything, the others get the budget.

    Args:
        mask: a :class:`HeadMask`, its path, or its ``to_dict()``.
        ratio: which mask of a folder; the mask's own ratio afterwards.
    """

    kind: ClassVar[str] = "mask"

    mask: HeadMask | str | Path | dict[str, Any] | None = method_option(
        None, needs="a head mask; give mask=FOLDER"
    )
    ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.mask is not None
        mask = HeadMask.given(self.mask, self.ratio)
        assign(self, mask=mask, ratio=mask.nominal_ratio)

    @property
    def adaptive(self) -> Tensor:
        assert isinstance(self.mask, HeadMask)
        return self.mask.adaptive

    def validate(self, shape: ModelShape) -> None:
        assert isinstance(self.mask, HeadMask)
        self.mask.validate(shape)

    def table(self, demand: Demand) -> Tensor:
        self.validate(demand.shape)
        return torch.where(self.adaptive, demand.room, min(demand.budget, demand.room))

    def exact_table(self, demand: Demand, total: int) -> Tensor:
        """Adaptive heads stay whole; the others share the rest evenly."""
        self.validate(demand.shape)
        others = ~self.adaptive
        rest = total - demand.room * int(self.adaptive.sum())
        if not 0 <= rest <= demand.room * int(others.sum()):
            raise UserError(
                f"{total} tokens outside the edges cannot be split by a mask whose "
                f"{int(self.adaptive.sum())} adaptive heads keep all {demand.room}; change the "
                "total or the ratio"
            )
        table = torch.full(self.adaptive.shape, demand.room)
        table[others] = largest_remainder(torch.ones(int(others.sum())), rest)
        return table

    def for_heads(self, heads: slice) -> Mask:
        return Mask(HeadMask(self.adaptive[:, heads], {"ratio": self.ratio}))

    def to_dict(self) -> dict[str, Any]:
        assert isinstance(self.mask, HeadMask)
        heads = {key: value for key, value in self.mask.to_dict().items() if key != "meta"}
        return {"kind": self.kind, "mask": heads, "ratio": self.ratio}


@dataclass(frozen=True)
class Scored(Budgets):
    """Base of the allocators that follow a score per head.

    Args:
        scores: numbers [layers, heads] or their path (JSON of HeadKV, CSV, or npz with
            ``scores``). Scores per query head are averaged over the group of a KV head.
        rounding: ``floor`` (as run) or ``largest_remainder`` (the sum is exact).
        redistribute: tokens that do not fit into a head, because the prompt is too short, go to
            the others; otherwise they are lost.
    """

    scores: Any = method_option(None, convert=read_scores, needs="scores; give scores=FILE")
    rounding: str = method_option("floor", words=ROUNDINGS)
    redistribute: bool = False

    def scores_for(self, shape: ModelShape) -> Tensor:
        """float64 [layers, kv_heads] (CoKV: possibly [slices, layers, kv_heads])."""
        return to_kv_heads(torch.tensor(self.scores, dtype=torch.float64), shape, self.kind)

    def validate(self, shape: ModelShape) -> None:
        """Also refuses scores whose file says that another model made them."""
        self.scores_for(shape)
        refuse_other_configuration(f"{self.kind}: the scores", self.scores.made_for, shape)

    def table(self, demand: Demand) -> Tensor:
        if demand.budget >= demand.room:  # a prompt within the budget is kept whole in every head
            return torch.full((demand.shape.layers, demand.shape.kv_heads), demand.room)
        total = demand.budget * demand.heads
        return proportional(
            self.weights(demand), total, self.rounding, demand.room, self.redistribute
        )

    def for_heads(self, heads: slice) -> Budgets:
        raise NeedsAllHeadsError(_NEEDS_ALL_HEADS.format(self.kind))


@dataclass(frozen=True)
class HeadKVBudgets(Scored):
    """A part of every head's budget is pooled and split by the heads' scores (HeadKV).

    Args:
        scores, rounding, redistribute: see :class:`Scored`.
        beta: above 1; the pool takes ``budget // beta`` of every head.
    """

    kind: ClassVar[str] = "headkv"

    beta: float = method_option(1.01, least=1)

    def scores_for(self, shape: ModelShape) -> Tensor:
        scores = super().scores_for(shape)
        if scores.dim() != 2 or float(scores.min()) < 0:
            raise UserError("headkv: scores are one number, at least 0, per layer and head")
        return scores

    def weights(self, demand: Demand) -> Tensor:
        return headkv_quotas(self.scores_for(demand.shape), demand.budget, self.beta)


@dataclass(frozen=True)
class CoKVBudgets(Scored):
    """All tokens are split by how far a group's score lies above the worst ones (CoKV).

    Args:
        scores, rounding, redistribute: see :class:`Scored`; scores may have a leading dimension
            of slices, [slices, layers, kv_heads].
        alpha: so many of the lowest scores get nothing, from 1 to the number of groups.
        slice_scaling: ``none``, or ``zscore`` before slices are averaged.
    """

    kind: ClassVar[str] = "cokv"

    alpha: int = method_option(1, least=1)
    slice_scaling: str = method_option("none", words=SLICE_SCALINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = torch.tensor(self.scores).shape[-2:].numel()
        if self.alpha > groups:
            raise UserError(f"cokv: alpha {self.alpha} is outside 1 to {groups}, the groups")

    def weights(self, demand: Demand) -> Tensor:
        scores = combine_slices(self.scores_for(demand.shape), self.slice_scaling)
        return cokv_weights(scores, self.alpha)


@dataclass(frozen=True)
class Curves(Budgets):
    """Every entry goes to the head whose measured loss it lowers most, over all layers and heads.

    Args:
        curves: file of ``catekv heads curves``, or its ``to_dict()``.
        floor: share of an even budget that no head loses.
    """

    kind: ClassVar[str] = "curves"

    curves: Any = method_option(
        None, convert=read_curves, needs="measured loss curves; give curves=FILE"
    )
    floor: float = method_option(0.0, least=0, most=1)

    def validate(self, shape: ModelShape) -> None:
        own: LossCurves = self.curves
        refuse_other_extents(
            "the loss curves are for", (own.layers, own.kv_heads), model_shape_of(shape)
        )
        refuse_other_configuration("the loss curves", own.made_for, shape)

    def table(self, demand: Demand) -> Tensor:
        return self.exact_table(demand, min(demand.budget, demand.room) * demand.heads)

    def exact_table(self, demand: Demand, total: int) -> Tensor:
        self.validate(demand.shape)
        refuse_beyond_room(demand, total)
        return self.curves.split(total, demand.room, self.floor)

    def for_heads(self, heads: slice) -> Budgets:
        raise NeedsAllHeadsError(_NEEDS_ALL_HEADS.format(self.kind))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "curves": self.curves.to_dict(), "floor": self.floor}


KINDS: dict[str, type[Budgets]] = {
    cls.kind: cls for cls in (Uniform, Pyramid, Table, Mask, HeadKVBudgets, CoKVBudgets, Curves)
}


def budgets_from(value: Any) -> Budgets:
    """Read the option ``budgets``.

    Args:
        value: None (uniform), an allocator, its dict, one of the words ``uniform`` and
            ``pyramid``, a table of integers, or a path: CSV or npz (a table), JSON or YAML (an
            allocator's dict; paths in it are relative to it).

    Raises:
        UserError: unknown kind or option (the valid ones are listed), or an unreadable file.
    """
    if value is None:
        return Uniform()
    if isinstance(value, Budgets):
        return value
    if isinstance(value, dict):
        return _from_dict(value)
    if isinstance(value, str) and value in KINDS:
        return _from_dict({"kind": value})
    if isinstance(value, str | Path):
        if Path(value).suffix in _FILES:
            return _from_dict(read_allocator(value))
        if not Path(value).suffix and not Path(value).exists():
            raise UserError(
                f"unknown budgets {str(value)!r}{nearest(str(value), list(KINDS))}; use "
                f"{', '.join(KINDS)} or the path of a CSV, npz, JSON or YAML file"
            )
    return Table(value)


def _without_kind(content: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in content.items() if key != "kind"}


def _from_dict(content: dict[str, Any]) -> Budgets:
    kind = content.get("kind")
    if isinstance(kind, str) and kind not in KINDS and Path(kind).suffix in _FILES:
        # a file, of which single options are written anew
        content = {**content, **read_allocator(kind), **_without_kind(content)}
        kind = content["kind"]
    if kind not in KINDS:
        raise UserError(
            f"unknown kind of budgets {kind!r}{nearest(str(kind), list(KINDS))}; use "
            f"{', '.join(KINDS)}"
        )
    options = _without_kind(content)
    valid = [item.name for item in dataclasses.fields(KINDS[kind])]
    unknown = [name for name in options if name not in valid]
    if unknown:
        raise UserError(
            f"budgets of kind {kind!r} have no option {unknown[0]!r}{nearest(unknown[0], valid)}; "
            f"valid options: {', '.join(valid) or 'none'}"
        )
    return KINDS[kind](**options)
