"""HeadKV and Retrieval_Head: one line of JSON, ``{"layer-head": [score of a trial, ...]}``, query
heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.files import write_json
from catekv.methods.allocator_files import read_scores


def matches(path: Path) -> bool:
    return path.suffix == ".json"


def read(path: Path, asked: Asked) -> Table:
    return Table(np.array(read_scores(path)), {})


def write(scores: HeadScores, path: Path, asked: Asked) -> Path:
    """All layers and heads in order, because its reader reshapes by the order of the keys."""
    table = scores.scores - min(0.0, float(scores.scores.min()))
    if not table.any():
        raise UserError("all scores are 0; HeadKV divides by their sum: export scores that differ")
    queries = table.repeat(asked.model.group, axis=1)
    rows = {
        f"{layer}-{h}": [float(s)] for layer, row in enumerate(queries) for h, s in enumerate(row)
    }
    return write_json(path, rows, indent=None)
