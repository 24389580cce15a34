"""Tangram (a fork of vLLM with ragged paging): cluster maps, and profiles of kept shares."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.head_scores import Floats, HeadScores
from catekv.errors import UserError
from catekv.files import read_arrays, write_arrays
from catekv.methods.head_groups import group_heads
from catekv.methods.loss_curves import read_curves

_MAP, _PROFILE = "cluster_of", "ratio_per_head"


def matches(path: Path) -> bool:
    return path.suffix == ".npz" and bool({_MAP, _PROFILE} & read_arrays(path).keys())


def read(path: Path, asked: Asked) -> Table:
    """A map's rank scores, or a profile's median kept shares at the base ratio next to ``ratio``
    (without one: the mean over all)."""
    arrays = read_arrays(path)
    says = _meta(path, arrays)
    if _MAP in arrays:
        _check_map(path, arrays)
        scores = arrays["rank_score"].astype(np.float64)
        return Table(scores, {**says, "base_ratio": float(arrays["base_ratio"])})
    if _PROFILE not in arrays:
        raise UserError(f"{path} holds neither {_MAP} nor {_PROFILE}; give a file of Tangram")
    ratios = arrays.get("base_ratios", np.zeros(0))
    table = arrays[_PROFILE].astype(np.float64)
    if table.ndim != 3 or ratios.shape != table.shape[:1]:
        raise UserError(
            f"{path}: {_PROFILE} {list(table.shape)} for {ratios.size} base ratios; it is torn"
        )
    if asked.ratio is None:
        return Table(table.mean(axis=0), {**says, "base_ratios": ratios.tolist()})
    place = int(np.abs(ratios - asked.ratio).argmin())
    return Table(table[place], {**says, "base_ratio": float(ratios[place])})


def _meta(path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(bytes(arrays["meta"]).decode()) if "meta" in arrays else {}
        return {key: found[key] for key in ("cluster_scope", "source_model") if key in found}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the meta of {path} cannot be read: {error}") from error


def _check_map(path: Path, arrays: dict[str, Any]) -> None:
    """Raise ``UserError`` unless every head has a slot of its own."""
    missing = {"column_of", "rank_score", "page_group_size", "base_ratio"} - arrays.keys()
    if missing:
        raise UserError(f"{path} is a cluster map without {sorted(missing)[0]}; it is torn")
    cluster, column = arrays[_MAP], arrays["column_of"]
    size = int(arrays["page_group_size"])
    shapes = {cluster.shape, column.shape, arrays["rank_score"].shape}
    slots = np.sort((cluster.astype(np.int64) * size + column).ravel())
    if len(shapes) > 1 or cluster.ndim != 2 or not np.array_equal(slots, np.arange(cluster.size)):
        raise UserError(
            f"{path}: clusters and columns do not give each of {cluster.size} heads a slot of its "
            f"own in clusters of {size}; it is torn"
        )


def kept_shares(scores: HeadScores, ratio: float, tokens: int) -> Floats:
    """Share that every head keeps of a prompt, ``ratio`` on average: by the loss curves where there
    are some, else in proportion to the scores."""
    heads = scores.shape[0] * scores.shape[1]
    if "losses" in scores.arrays:
        written = {name: _plain(scores.arrays.get(name)) for name in ("shares", "losses")}
        table = read_curves(written).split(round(ratio * tokens * heads), tokens).numpy()
    else:
        table = scores.budgets(round(ratio * tokens)).clip(max=tokens)
    return np.asarray(table / tokens)


def _plain(array: Any) -> Any:
    return None if array is None else array.tolist()


def write(scores: HeadScores, path: Path, asked: Asked) -> Path:
    """The map of a scope. It holds no budgets: the server chooses tokens by its own scores.

    Raises:
        UserError: no ratio, or clusters that do not divide the KV heads.
    """
    if asked.ratio is None:
        raise UserError("a cluster map is made for a kept share; say which with --ratio, e.g. 0.3")
    share = kept_shares(scores, asked.ratio, asked.tokens)
    full = list(asked.model.full_layers) or list(range(scores.shape[0]))
    groups = group_heads(torch.from_numpy(share[full]), asked.group_size, asked.scope)
    cluster, column = groups.cluster_of.numpy(), groups.column_of.numpy()
    members = np.zeros((cluster.size // asked.group_size, asked.group_size, 2), dtype=np.int32)
    for row, head in np.ndindex(*cluster.shape):
        members[cluster[row, head], column[row, head]] = full[row], head
    meta = {
        "cluster_scope": asked.scope,
        "source_model": Path(asked.model.name or str(scores.recipe.get("model"))).name,
        "page_group_size": asked.group_size,
        "num_layers": scores.shape[0],
        "num_kv_heads": scores.shape[1],
        "static_layer_ids": full,
        "method": scores.recipe.get("kind"),
        "ratio": asked.ratio,
        "tokens": asked.tokens,
        "waste": groups.waste,
        "scores_hash": hashlib.sha256(share.tobytes()).hexdigest()[:16],
    }
    return write_arrays(
        path,
        {
            _MAP: cluster,
            "column_of": column,
            "cluster_members": members,
            "rank_score": share[full].astype(np.float32),
            "page_group_size": np.int32(asked.group_size),
            "base_ratio": np.float32(asked.ratio),
            "meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
        },
    )
