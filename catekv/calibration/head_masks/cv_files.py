"""Per-sample CVs as files, in the layout of the published reference pass.

``headmask_new<model>/<task>_fraction<k>_top<alpha>_lastq<window>/<10 characters>.csv``: one file
per reference sample, one line per layer, one number per KV head, comma separated, no header.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_text, write_atomically


def pair_folder(task: str, k: float, alpha: float, window: int) -> str:
    """Folder name of one (k, alpha) pair, e.g. ``vt_fraction0.99_top1.0_lastq64``."""
    return f"{short_task(task)}_fraction{float(k)}_top{float(alpha)}_lastq{window}"


def short_task(task: str) -> str:
    """``vt`` of ``ruler/vt``, and the stem of a file's path."""
    return Path(task).stem if task.endswith((".json", ".jsonl")) else task.rpartition("/")[2]


def write_cv(path: Path, cvs: Tensor) -> None:
    """Write one sample's CVs [layers, kv_heads]; a reader never sees half a file."""
    text = "".join(",".join(repr(v) for v in row) + "\n" for row in cvs.double().tolist())
    write_atomically(path, text)


def read_cv(path: Path) -> Tensor:
    """CVs of one sample, fp64 [layers, kv_heads]; ``UserError`` names a torn or foreign file."""
    try:
        lines = read_text(path).splitlines()
        rows = [[float(cell) for cell in line.split(",")] for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no CV file (numbers, comma separated, one line per layer); delete it and "
            "run the reference pass again"
        ) from error
    if not rows or len({len(row) for row in rows}) > 1:
        raise UserError(f"{path} is torn: its lines differ in length; delete it and run again")
    found = torch.tensor(rows, dtype=torch.float64)
    # layers that are not compressed have no statistics
    absent = torch.isnan(found).all(dim=-1)
    if bool(absent.all()) or not bool(torch.isfinite(found[~absent]).all()):
        raise UserError(f"{path} holds values that are not finite; delete it and run again")
    return found


def read_folder(folder: Path, num_samples: int | None = None, seed: int = 42) -> Tensor:
    """CVs of a folder's samples, fp64 [samples, layers, kv_heads].

    Args:
        folder: one (k, alpha) folder.
        num_samples: draw so many of the files; default all.
        seed: of that draw. Files are taken in the order of their names, so that the same files give
            the same draw on every machine.

    Raises:
        UserError: no such folder, no CSV files in it, fewer than asked for, files of different
            shapes, or torn ones.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; pass a folder of per-sample CV files")
    files = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    if not files:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = f"; it has subfolders, pass one of them: {', '.join(inside[:4])}" if inside else ""
        raise UserError(f"{folder} holds no CSV files{hint}")
    if num_samples is not None:
        if not 1 <= num_samples <= len(files):
            raise UserError(
                f"{folder} holds {len(files)} samples, {num_samples} were asked for; ask for 1 to "
                f"{len(files)}"
            )
        files = sorted(random.Random(seed).sample(files, num_samples))
    return stack([read_cv(path) for path in files], files)


def stack(samples: Sequence[Tensor], files: Sequence[Path]) -> Tensor:
    """Samples of one shape as one tensor; ``UserError`` names the file that differs."""
    for cvs, path in zip(samples, files, strict=True):
        if cvs.shape != samples[0].shape:
            raise UserError(
                f"{path} has {list(cvs.shape)} values, {files[0].name} has "
                f"{list(samples[0].shape)}; the folder mixes models"
            )
    return torch.stack(list(samples))
