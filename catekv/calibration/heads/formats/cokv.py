"""CoKV: the project's npz of slices, and the published pickles ``cc_TASK_J.npy``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.game import slice_estimate
from catekv.calibration.cokv.published import read_published
from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.files import read_arrays, write_atomically


def matches(path: Path) -> bool:
    return path.suffix == ".npy" or (path.suffix == ".npz" and "left_count" in read_arrays(path))


def read(path: Path, asked: Asked) -> Table:
    """Sliced Shapley values, a sample per slice; of a published file the left accumulators."""
    if path.suffix == ".npz":
        file = ScoreFile.load(path)
        return Table(file.estimates(), {**file.recipe, "slices": list(file.slices)})
    found = read_published(path, trust_pickle=asked.trust_pickle)
    values = slice_estimate(found.sums, "left")
    model = asked.model
    if not model.layers or model.layers * model.kv_heads != len(values):
        raise UserError(
            f"{path} holds {len(values)} players and not their layers; say the model with --model, "
            f"or its heads with --shape LAYERSxKV_HEADS, which make {len(values)} together"
        )
    return Table(values.reshape(model.layers, model.kv_heads), {"slice": found.sums.size})


def write(scores: HeadScores, path: Path, asked: Asked) -> Path:
    """npz, or the published layout for a path that ends with ``.npy``: one draw a head, of a slice
    of one."""
    if path.suffix != ".npy":
        return scores.save(path)
    values = scores.scores.flatten()
    content: dict[str, Any] = {
        "cc_left": np.append(values, 0.0),
        "cc_right": np.zeros(len(values) + 1),
        "count_left": np.append(np.ones(len(values)), 0.0),
        "count_right": np.append(np.full(len(values), len(values) - 1.0), 0.0),
        "sampling_count": len(values),
    }
    data = io.BytesIO()
    np.save(data, np.array(content, dtype=object), allow_pickle=True)
    return write_atomically(path, data.getvalue())
