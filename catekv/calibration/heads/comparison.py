"""Several estimates of one model's heads side by side, with as many full heads each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catekv.calibration.cokv.display import rank_correlation
from catekv.calibration.heads.curves import KIND as LOSS_CURVES
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.evaluation.fidelity.passages import TEXT
from catekv.files import read_object
from catekv.methods.head_mask import HeadMask

#: Draws of random heads: one may be lucky.
RANDOM = ("random-0", "random-1", "random-2")


@dataclass(frozen=True)
class Row:
    """One estimate: how it came about, and how it agrees with the others.

    Attributes:
        seconds: what it cost; None where its file does not say.
        correlations: Spearman's, with every estimate; NaN where one is constant.
        overlaps: share of its full heads that are full in every estimate too.
        votes: share of its samples that call a full head full, mean; None for a single sample.
    """

    name: str
    kind: str
    samples: int
    seconds: float | None
    full_heads: int
    votes: float | None
    correlations: dict[str, float]
    overlaps: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        correlations = {
            name: None if math.isnan(value) else value for name, value in self.correlations.items()
        }
        return {**vars(self), "correlations": correlations}


@dataclass(frozen=True)
class Comparison:
    """All rows, and the mask of every estimate (of random heads too)."""

    ratio: float
    rows: tuple[Row, ...]
    masks: dict[str, HeadMask]


def compare_heads(heads: Mapping[str, HeadScores], ratio: float) -> Comparison:
    """Masks with ``ceil(ratio * heads)`` full heads, their overlap, and correlations of ranks.

    Random heads are rows of their own: what agrees with them no less says nothing.

    Raises:
        UserError: fewer than two estimates, heads of several models, or scores that tell no head
            from another.
    """
    first, *others = heads.items()
    if not others:
        raise UserError(
            f"there is nothing to compare {first[0]} with; give at least two head files"
        )
    for name, one in others:
        hashes = {one.recipe.get("config_hash"), first[1].recipe.get("config_hash")} - {None}
        if one.shape != first[1].shape or len(hashes) > 1:
            raise UserError(
                f"{first[0]} has {first[1].shape[0]} layers x {first[1].shape[1]} KV heads and "
                f"{name} {one.shape[0]} x {one.shape[1]}"
                f"{' of another configuration' if len(hashes) > 1 else ''}; compare heads of one "
                "model"
            )
    drawn = {
        name: HeadScores(np.random.default_rng(seed).random(first[1].shape), {})
        for seed, name in enumerate(RANDOM)
    }
    all_heads = {**heads, **drawn}
    masks = {name: one.mask(ratio) for name, one in all_heads.items()}
    rows = tuple(_row(name, all_heads, masks, ratio) for name in all_heads)
    return Comparison(ratio, rows, masks)


def _row(
    name: str, heads: Mapping[str, HeadScores], masks: Mapping[str, HeadMask], ratio: float
) -> Row:
    own, mask = heads[name], masks[name].adaptive
    full = int(mask.sum())
    votes = None
    if len(own.samples) > 1:
        shares = torch.from_numpy(own.votes(ratio))[mask].double() / len(own.samples)
        votes = float(shares.mean())
    seconds = own.recipe.get("seconds")
    return Row(
        name=name,
        kind=str(own.recipe.get("kind", "drawn by lot")),
        samples=len(own.samples),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        full_heads=full,
        votes=votes,
        correlations={
            other: rank_correlation(own.scores, one.scores) for other, one in heads.items()
        },
        overlaps={other: int((mask & one.adaptive).sum()) / full for other, one in masks.items()},
    )


def table_of(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the comparison; a cell of two is correlation and overlap."""
    names = [row.name for row in comparison.rows if row.name not in RANDOM]
    header = ["heads", "made by", "samples", "seconds", "full", "votes", *names]
    cells = [
        [
            row.name,
            row.kind,
            str(row.samples),
            "-" if row.seconds is None else f"{row.seconds:.0f}",
            str(row.full_heads),
            "-" if row.votes is None else f"{100 * row.votes:.0f} %",
            *(_pair(row, name) for name in names),
        ]
        for row in comparison.rows
    ]
    return header, cells


def _pair(row: Row, name: str) -> str:
    found = row.correlations[name]
    words = "-" if math.isnan(found) else f"{found:+.2f}"
    return "" if name == row.name else f"{words} {100 * row.overlaps[name]:.0f} %"


def columns_at_equal_bytes(
    comparison: Comparison, files: Mapping[str, Path], folder: Path, budget: int
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Methods as :func:`catekv.evaluation.columns.specification.parse_methods` reads them from a
    file: ``catekv`` with the mask of every estimate, and ``curvekv`` with every file of loss
    curves at the same number of entries. Beside them the masks by name, which are written into
    ``folder``.

    Args:
        files: where each estimate was read from.
        budget: entries that a head keeps which is not full.
    """
    columns: list[dict[str, Any]] = [{"name": "full"}]
    masks: dict[str, Path] = {}
    for row in comparison.rows:
        mask = comparison.masks[row.name]
        masks[row.name] = mask.save(folder / row.name)
        options = {"mask": row.name, "budget": budget}
        columns.append({"label": row.name, "name": "catekv", **options})
        if row.kind == LOSS_CURVES:
            # without a size of its own it gets the entries of the first mask, exactly
            curves = {"curves": str(files[row.name])}
            columns.append({"label": f"{row.name}-budgets", "name": "curvekv", **curves})
    return columns, masks


def measured_cells(evaluation: Path, fidelity: Path) -> dict[str, list[str]]:
    """Mean accuracy and divergence on text by label, from the summaries of both runs."""
    averages = read_object(evaluation / "summary.json")["averages"]
    rows = read_object(fidelity / "summary.json")["rows"]
    accuracy = {row["method"]: f"{row['official']['mean']:.1f}" for row in averages}
    divergence = {
        row["method"]: f"{row['divergence']['mean']:.4f}" for row in rows if row["kind"] == TEXT
    }
    return {name: [accuracy[name], divergence.get(name, "0")] for name in accuracy}
