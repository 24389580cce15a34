"""Tables and scores per head from files and plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_arrays, read_json, read_text, read_yaml
from catekv.models.shape import ModelShape

#: Rows of numbers, hashable and the same in JSON.
Rows = tuple[Any, ...]


class ScoreRows(Rows):
    """Rows of scores that remember the configuration hash of the model they were made with."""

    made_for: str | None = None


def read_budgets(source: Any) -> Rows:
    """Tokens per head as rows of integers [layers, kv_heads].

    Args:
        source: nested numbers, a tensor, or the path of a CSV file (one line per layer) or an npz
            file (array ``budgets``, or its only array).

    Raises:
        UserError: unreadable, ragged, negative or not integers.
    """
    name = f"budget table {source}" if isinstance(source, str | Path) else "the budget table"
    table = _array(source, "budgets", name)
    if table.ndim == 1:
        table = table[None]
    if table.ndim != 2 or table.size == 0:
        raise UserError(f"{name} has the shape {list(table.shape)}; it is [layers, KV heads]")
    if not np.isfinite(table).all() or (table != np.floor(table)).any() or table.min() < 0:
        raise UserError(f"{name} holds something other than whole numbers from 0; give tokens")
    return tuple(tuple(int(cell) for cell in row) for row in table)


def read_scores(source: Any) -> Rows:
    """Scores per head as rows [layers, heads], or [slices, layers, heads].

    Args:
        source: nested numbers, a tensor, or the path of a CSV or TSV file, an npz file (array
            ``scores``, or its only array), or a JSON file as HeadKV publishes it: one object
            ``{"layer-head": [score of a trial, ...]}``, whose score is the mean of the list.

    Raises:
        UserError: unreadable, ragged or not finite.
    """
    name = f"score file {source}" if isinstance(source, str | Path) else "the scores"
    if isinstance(source, str | Path) and Path(source).suffix == ".json":
        table = _headkv_scores(Path(source))
    else:
        table = _array(source, "scores", name)
    if table.ndim not in (2, 3) or table.size == 0:
        raise UserError(
            f"{name} has the shape {list(table.shape)}; it is [layers, heads], or [slices, layers, "
            "heads]"
        )
    if not np.isfinite(table).all():
        raise UserError(f"{name} holds a value that is no finite number; make the scores again")
    rows = ScoreRows(_nested(table.tolist()))
    rows.made_for = source.made_for if isinstance(source, ScoreRows) else _made_for(source)
    return rows


def _made_for(source: Any) -> str | None:
    """The ``config_hash`` in the recipe of an npz file; None where there is none."""
    if not isinstance(source, str | Path) or Path(source).suffix != ".npz":
        return None
    try:
        content = read_arrays(source)
        recipe = json.loads(str(content["recipe"])) if "recipe" in content else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"the recipe of {source} cannot be read: {error}") from error
    found = recipe.get("config_hash") if isinstance(recipe, dict) else None
    return found if isinstance(found, str) else None


def to_kv_heads(scores: Tensor, shape: ModelShape, what: str) -> Tensor:
    """Scores [..., layers, query heads or KV heads] as [..., layers, kv_heads]: the mean over the
    query heads of a group.

    Raises:
        UserError: scores of a model of another shape.
    """
    layers, heads = scores.shape[-2:]
    if layers != shape.layers or heads not in (shape.kv_heads, shape.query_heads):
        raise UserError(
            f"{what}: the scores are for {layers} layers x {heads} heads but the model has "
            f"{shape.layers} layers x {shape.query_heads} query heads ({shape.kv_heads} KV heads); "
            "use scores of this model"
        )
    if heads == shape.kv_heads:
        return scores
    return scores.unflatten(-1, (shape.kv_heads, -1)).mean(dim=-1)


def read_allocator(path: str | Path) -> dict[str, Any]:
    """The dict of an allocator from a JSON or YAML file; paths in it are relative to the file.

    Raises:
        UserError: unreadable, or no dict with ``kind``.
    """
    path = Path(path)
    content = load_plain(path)
    if not isinstance(content, dict) or "kind" not in content:
        raise UserError(
            f"{path} describes no budgets; it is an object with kind (and scores, for those of "
            "HeadKV: {'kind': 'headkv', 'scores': FILE})"
        )
    files = {"scores", "mask", "counts"}
    return {
        key: str(path.parent / value) if key in files and isinstance(value, str) else value
        for key, value in content.items()
    }


def load_plain(path: Path) -> Any:
    """The content of a JSON or YAML file.

    Raises:
        UserError: not there, or not readable as what its suffix says.
    """
    return read_json(path, "correct it") if path.suffix == ".json" else read_yaml(path)


def _array(source: Any, key: str, name: str) -> np.ndarray:
    try:
        if isinstance(source, str | Path):
            path = Path(source)
            if path.suffix == ".npz":
                content = read_arrays(path)
                names = list(content)
                if key not in names and len(names) != 1:
                    raise UserError(
                        f"{name} has no array {key!r} but {', '.join(names) or 'none'}; save "
                        f"it with numpy.savez(path, {key}=...)"
                    )
                return content[key if key in names else names[0]].astype(np.float64)
            if path.suffix == ".npy":
                raise UserError(
                    f"{name} is a published score file, a pickle; convert it with `catekv cokv "
                    f"show {path} --trust-pickle --shape LAYERSxHEADS --output FILE.npz`"
                )
            delimiter = "\t" if path.suffix == ".tsv" else ","
            return np.loadtxt(
                read_text(path).splitlines(), delimiter=delimiter, dtype=np.float64, ndmin=2
            )
        if isinstance(source, Tensor):
            return source.detach().cpu().double().numpy()
        return np.asarray(source, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{name} cannot be read as numbers ({error}); give rows of equal length, comma "
            "separated, one per layer, or an npz file"
        ) from error


def _headkv_scores(path: Path) -> np.ndarray:
    content = load_plain(path)
    try:
        if not all(map(np.size, content.values())):
            raise ValueError("a head has no score")
        means = {
            tuple(int(part) for part in key.split("-")): float(np.mean(trials))
            for key, trials in content.items()
        }
        if any(len(key) != 2 for key in means):
            raise ValueError("a key names something other than a layer and a head")
        layers, heads = (max(key[axis] for key in means) + 1 for axis in (0, 1))
        complete = len(means) == layers * heads == len(content)
    except (AttributeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{path} is no HeadKV score file; it is one object {{'layer-head': [score, ...]}}"
        ) from error
    if not complete:
        raise UserError(
            f"{path} names {len(content)} heads, but its layers and heads reach {layers} x "
            f"{heads}; the file is torn"
        )
    table = np.full((layers, heads), np.nan)
    for (layer, head), mean in means.items():
        table[layer, head] = mean
    return table


def _nested(value: Any) -> Any:
    return tuple(_nested(item) for item in value) if isinstance(value, list) else value
