"""CateKV: masks as 0/1 CSV (1 = keeps all), and coefficients of variation (low = keeps all)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.methods.head_mask import MASK_FILE, STATISTICS_FILE, HeadMask, refuse_other_mask
from catekv.methods.head_tables import read_numbers, read_table


def matches(path: Path) -> bool:
    if path.is_dir():
        names = [file.name for file in path.iterdir()]
        return STATISTICS_FILE in names or any(name.endswith(".csv") for name in names)
    return path.suffix == ".csv" or path.name == STATISTICS_FILE


def read(path: Path, asked: Asked) -> Table:
    """A mask's scores are 1 and 0; where its folder tells the order of the heads, their places in
    it. Of CVs every file is a sample."""
    if path.name == STATISTICS_FILE:
        path = path.parent
    is_folder = path.is_dir()
    files = sorted(path.glob("*.csv")) if is_folder else [path]
    masks = is_folder and (
        (path / STATISTICS_FILE).is_file() or any(MASK_FILE.fullmatch(file.name) for file in files)
    )
    if masks or {cell for row in read_table(files[0], ",") for cell in row} <= {"0", "1"}:
        mask = HeadMask.load(path, asked.ratio)
        said = ("ratio", "recipe", "model", "config_hash")
        says: dict[str, Any] = {name: mask.meta[name] for name in said if name in mask.meta}
        if mask.order is None:
            return Table(mask.adaptive.double().numpy(), says)
        places = np.empty(len(mask.order))
        places[list(mask.order)] = np.arange(len(mask.order), 0, -1) / len(mask.order)
        return Table(places.reshape(mask.layers, mask.kv_heads), says)
    cvs = [read_numbers(file, ",").numpy() for file in files]
    if len({one.shape for one in cvs}) > 1:
        raise UserError(f"{path} holds CVs of several models; give those of one")
    return Table(-np.stack(cvs), {"rule": "low coefficients of variation first"})


def write(scores: HeadScores, path: Path, asked: Asked) -> Path:
    if asked.ratio is None:
        raise UserError("a mask has a share of full heads; say which with --ratio, e.g. 0.4")
    mask = scores.mask(asked.ratio)
    refuse_other_mask(path, mask)
    return mask.save(path)
