"""Mean queries of every head before their rotation, from a file (TriAttention's calibration).

The file is what the authors' script writes: ``torch.save`` of ``metadata`` and ``stats``, where
``stats["layer03_head11"]`` holds ``q_mean_real``, ``q_mean_imag`` and ``q_abs_mean`` [half of the
head's rotated numbers] of that query head: a head's two halves are the real and imaginary parts.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.files import open_regular, write_atomically

_HEAD = re.compile(r"layer(\d+)_head(\d+)")
_PARTS = ("q_mean_real", "q_mean_imag", "q_abs_mean")


@dataclass(frozen=True, eq=False)
class QueryStatistics:
    """What is known of the queries of every query head.

    Attributes:
        parts: float32 [3, layers, query_heads, numbers]: real and imaginary part of the mean, and
            the mean of the length.
        path: of the file; None: they are given as numbers.
        first_head: the KV head that a method for some of them begins with.
    """

    parts: Tensor
    path: str | None = None
    first_head: int = 0

    @property
    def layers(self) -> int:
        return self.parts.shape[1]

    @property
    def heads(self) -> int:
        return self.parts.shape[2]

    def of_heads(self, layer: int, heads: Tensor, group: int) -> Tensor:
        """Those of some KV heads of a layer, [3, kv_heads, group, numbers]."""
        rows = self.parts[:, layer].unflatten(1, (-1, group)).to(heads.device)
        return rows[:, heads + self.first_head]

    def after(self, heads: int) -> QueryStatistics:
        """The same for a method whose KV head 0 is the model's KV head ``heads``."""
        return replace(self, first_head=self.first_head + heads)

    def to_dict(self) -> Any:
        """The path, or the numbers by part."""
        if self.path is not None:
            return self.path
        return dict(zip(_PARTS, self.parts.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueryStatistics) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
        """Write the file; ``UserError`` if that is impossible."""
        stats = {
            f"layer{layer:02}_head{head:02}": {
                name: self.parts[part, layer, head].clone() for part, name in enumerate(_PARTS)
            }
            for layer in range(self.layers)
            for head in range(self.heads)
        }
        data = io.BytesIO()
        torch.save({"metadata": dict(metadata), "stats": stats}, data)
        write_atomically(path, data.getvalue())


def read_statistics(value: Any) -> QueryStatistics | None:
    """Statistics from a path, or from what :meth:`QueryStatistics.to_dict` makes of numbers.

    Raises:
        UserError: no such file, or not all heads of a model.
    """
    if value is None or isinstance(value, QueryStatistics):
        return value
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        open_regular(path).close()
        return _from_file(path, os.stat(path).st_mtime_ns)
    try:
        parts = torch.stack([torch.as_tensor(value[name]).float() for name in _PARTS])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"statistics are a file, or {', '.join(_PARTS)} of all heads") from error
    return _checked(parts, "the given statistics")


@lru_cache(maxsize=4)
def _from_file(path: str, changed: int) -> QueryStatistics:
    """Read once for as long as the file is the same."""
    try:
        stats = torch.load(path, map_location="cpu", weights_only=True)["stats"]
        named = {_head(name): entry for name, entry in stats.items()}
        layers, heads = (1 + max(found) for found in zip(*named, strict=True))
        rows = [named[layer, head] for layer in range(layers) for head in range(heads)]
        parts = torch.stack([torch.stack([row[name].float() for row in rows]) for name in _PARTS])
    except Exception as error:
        # the archive, its reader and what may be missing in it have each their own errors
        raise UserError(
            f"{path} holds no query statistics of all heads of a model ({type(error).__name__}); "
            "make it with `catekv triattention`"
        ) from error
    return replace(_checked(parts.unflatten(1, (layers, heads)), path), path=path)


def _head(name: str) -> tuple[int, int]:
    found = _HEAD.fullmatch(name)
    if found is None:
        raise KeyError(name)
    return int(found[1]), int(found[2])


def _checked(parts: Tensor, what: str) -> QueryStatistics:
    if parts.ndim != 4 or not parts.numel() or not bool(parts.isfinite().all()):
        raise UserError(
            f"{what} hold no finite numbers [layers, query heads, half of a head]; make them again "
            "with `catekv triattention`"
        )
    return QueryStatistics(parts)
