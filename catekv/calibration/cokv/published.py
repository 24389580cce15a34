"""Score files in the published layout: a pickled dict in a numpy file, one per task and slice."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as numpy_format

from catekv.calibration.cokv.game import Sums
from catekv.errors import UserError

_KEYS = ("cc_left", "cc_right", "count_left", "count_right")
#: What the pickle of a dict of arrays is made of; nothing else is called, whatever a file asks for.
_ALLOWED = frozenset(
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        (f"{core}.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"the pickle asks for {module}.{name}, which no score file needs; it was not run: "
                "do not trust this file"
            )
        return super().find_class(module, name)


@dataclass(frozen=True)
class PublishedFile:
    """One file. ``named_size`` is the slice that its name says, None if it says none; the true one
    is ``sums.size``."""

    sums: Sums
    named_size: int | None

    @property
    def matches_name(self) -> bool:
        return self.named_size in (None, self.sums.size)


def true_slice(left_count: Any, draws: int) -> float:
    """Mean coalition size, from the counters (of all elements: an unused last one is 0)."""
    return float(np.asarray(left_count, dtype=np.float64).sum() / draws)


def read_published(path: str | Path, *, trust_pickle: bool = False) -> PublishedFile:
    """Read ``cc_TASK_J.npy``: four arrays of ``players + 1`` (the last element is unused) and the
    number of draws, in a pickled dict.

    The slice comes from the counters; a name that says another one is warned about (14 published
    files hold another slice than their name says).

    Args:
        path: the file.
        trust_pickle: consent to read a pickle. Only numpy's own arrays are rebuilt even then.

    Raises:
        UserError: no consent, no such file, other contents, or counters that contradict each
            other.
    """
    path = Path(path)
    if not trust_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read; if it comes from somebody "
            "you trust, say so with --trust-pickle (trust_pickle=True); `catekv heads import` "
            "makes a file of it that every command reads"
        )
    content = _unpickled(path)
    if not isinstance(content, dict) or {*_KEYS, "sampling_count"} - set(content):
        raise UserError(
            f"{path} is no published score file; it holds a dict with {', '.join(_KEYS)} and "
            "sampling_count"
        )
    return _checked(path, content)


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            version = numpy_format.read_magic(stream)
            read_header = (
                numpy_format.read_array_header_1_0
                if version == (1, 0)
                else numpy_format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
            if not dtype.hasobject or shape != ():
                raise UserError(
                    f"an array of {dtype} {list(shape)} and no pickled dict; scores as numbers are "
                    "read from CSV or npz"
                )
            array = _ArraysOnly(stream).load()
        return array.item() if isinstance(array, np.ndarray) else array
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a torn pickle raises whatever its opcodes run into
        raise UserError(f"cannot read {path} as a published score file: {error}") from error


def _checked(path: Path, content: dict[str, Any]) -> PublishedFile:
    try:
        arrays = [np.asarray(content[key], dtype=np.float64) for key in _KEYS]
        draws = int(content["sampling_count"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds something other than numbers: {error}") from error
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 1 or len(arrays[0]) < 3 or draws < 1:
        raise UserError(
            f"{path}: arrays of the shapes {sorted(map(list, shapes))} with {draws} draws; all "
            "four have one element per player and an unused last one"
        )
    if any(array[-1] != 0 for array in arrays) or not np.isfinite(np.stack(arrays)).all():
        raise UserError(
            f"{path}: the last element is not 0 or a value is not finite; it is no published "
            "layout or torn"
        )
    left, right, left_count, right_count = (array[:-1] for array in arrays)
    size = true_slice(left_count, draws)
    whole = left_count + right_count == draws
    if size != int(size) or not 1 <= size < len(left) or not whole.all():
        raise UserError(
            f"{path}: the counters say a slice of {size:g} in {draws} draws of {len(left)} "
            "players, which no run leaves behind; the file is torn or mixes slices"
        )
    sums = Sums(
        int(size), left, right, left_count.astype(np.int64), right_count.astype(np.int64), draws
    )
    named = re.search(r"_(\d+)$", path.stem)
    result = PublishedFile(sums, int(named.group(1)) if named else None)
    if not result.matches_name:
        warnings.warn(
            f"{path.name} holds slice {sums.size}, not {result.named_size} as its name says",
            stacklevel=3,
        )
    return result
