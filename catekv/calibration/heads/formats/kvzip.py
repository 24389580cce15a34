"""KVzip: a tensor [layers, KV heads] a file, the largest score over a context's tokens."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.files import read_bytes, write_atomically


def matches(path: Path) -> bool:
    return path.suffix == ".pt" or (path.is_dir() and any(path.glob("*.pt")))


def read(path: Path, asked: Asked) -> Table:
    """One file, or the maximum over a folder's: a file is one context of the model."""
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no file *.pt; give a head file of KVzip or their folder")
    tables = [_tensor(file) for file in files]
    shapes = {tuple(table.shape) for table in tables}
    if len(shapes) > 1:
        raise UserError(
            f"{path} holds scores of {' and '.join(map(str, sorted(shapes)))} layers and heads; "
            "put the files of one model into a folder of their own"
        )
    joined = {"joined": f"maximum of {len(files)} files"} if len(files) > 1 else {}
    return Table(torch.stack(tables).amax(dim=0).double().numpy(), joined)


def _tensor(file: Path) -> torch.Tensor:
    data = io.BytesIO(read_bytes(file))
    try:
        found = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # an archive or pickle has errors of its own for every damage
        reason = str(error).partition("\n")[0][:80]
        raise UserError(
            f"{file} is no tensor file ({type(error).__name__}: {reason}); make it again"
        ) from error
    if not isinstance(found, torch.Tensor) or found.dim() != 2:
        raise UserError(f"{file} holds no tensor [layers, KV heads]; give a head file of KVzip")
    return found.float()


def write(scores: HeadScores, path: Path, asked: Asked) -> Path:
    data = io.BytesIO()
    torch.save(torch.from_numpy(scores.scores).float(), data)
    return write_atomically(path, data.getvalue())
