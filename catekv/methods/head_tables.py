"""Tables of heads in text files: one line per layer, one cell per head."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_text


def read_table(path: Path, separator: str) -> list[list[str]]:
    """The cells of a file; blank lines do not count.

    Raises:
        UserError: unreadable, empty, or lines of unequal length; it names the line.
    """
    try:
        lines = read_text(path).splitlines()
    except UserError as error:
        raise UserError(f"{error}; pass a head mask file") from error
    rows = [[cell.strip() for cell in line.split(separator)] for line in lines if line.strip()]
    if not rows:
        raise UserError(f"{path} is empty; make the mask again with ./run_headmask.sh")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{path} line {number + 1} has {len(row)} values, line 1 has {len(rows[0])}; the "
                "file is torn or no head mask"
            )
    return rows


def read_numbers(path: Path, separator: str) -> Tensor:
    """The numbers of a file, float64 [layers, heads].

    Raises:
        UserError: as :func:`read_table`, or a cell that is no finite number; it names the line.
    """
    numbers: list[list[float]] = []
    for place, row in enumerate(read_table(path, separator)):
        try:
            cells = [float(cell) for cell in row]
        except ValueError:
            cells = [math.nan]
        if not all(map(math.isfinite, cells)):
            between = "tabs" if separator == "\t" else "commas"
            raise UserError(
                f"{path} line {place + 1} holds something that is no finite number; give numbers, "
                f"one line per layer, {between} between them"
            )
        numbers.append(cells)
    return torch.tensor(numbers, dtype=torch.float64)
