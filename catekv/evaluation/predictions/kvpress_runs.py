"""Result folders of kvpress: their names, and the numbers in them.

kvpress writes ``<output_dir>/<name>/`` with ``predictions.csv``, ``metrics.json`` and, last of all,
``config.yaml``. Its ``compression_ratio`` is the share that is *removed*.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.files import read_json, read_text, read_yaml

#: presses that remove what scores below a threshold: no ratio says how much that is
THRESHOLD_PRESSES = ("kvzap_linear", "kvzap_mlp")
#: a predictions.csv holds whole answers
_LONGEST_FIELD = 1 << 27


@dataclass(frozen=True)
class KvpressRun:
    """One run of kvpress.

    Attributes:
        kept: share of the entries that is kept; None where neither the folder nor its predictions
            say it.
        scores: what metrics.json holds, its leaves by their path ("niah_single_1/string_match").
        finished: whether config.yaml was written.
    """

    path: Path
    dataset: str
    data_dir: str | None
    model: str
    press_name: str
    kept: float | None
    query_aware: bool
    scores: dict[str, float]
    finished: bool


def folder_name(config: Mapping[str, Any]) -> str:
    """Name of a run's folder, from its configuration."""
    value = next(
        (
            config[name]
            for name in ("threshold", "head_compression_ratio", "compression_ratio")
            if config.get(name) is not None
        ),
        0.0,
    )
    parts = [str(config["dataset"])]
    if config.get("data_dir"):
        parts.append(str(config["data_dir"]))
    parts += [str(config["model"]).replace("/", "--"), str(config["press_name"]), f"{value:.2f}"]
    if config.get("fraction", 1.0) < 1.0:
        parts.append(f"fraction{config['fraction']:.3f}")
    if config.get("max_context_length") is not None:
        parts.append(f"max_context{config['max_context_length']}")
    if config.get("query_aware"):
        parts.append("query_aware")
    if config.get("key_channel_compression_ratio") is not None:
        parts.append(f"key_channel_cr{config['key_channel_compression_ratio']:.2f}")
    if config.get("needle_depth") is not None:
        parts.append(f"needle_depth{config['needle_depth']}")
    return "__".join(parts)


def parse_name(name: str) -> dict[str, Any]:
    """What a folder's name says, read from its right end.

    The model begins at the first part that holds ``--`` (what stands between it and the data set is
    the directory of the data), else right after the data set; it may itself hold ``__``.

    Raises:
        UserError: the name is not one of kvpress.
    """
    parts = name.split("__")
    extra: dict[str, Any] = {"query_aware": False, "fraction": 1.0, "max_context_length": None}
    while parts and _take_suffix(parts[-1], extra):
        parts.pop()
    if len(parts) < 4:
        raise UserError(f"{name!r} is no name of a kvpress run (dataset__model__press__value)")
    try:
        value = float(parts[-1])
    except ValueError:
        raise UserError(
            f"{name!r} is no name of a kvpress run: {parts[-1]!r} is no value"
        ) from None
    press, before = parts[-2], parts[1:-2]
    start = next((place for place, part in enumerate(before) if "--" in part), 0)
    return {
        **extra,
        "value": value,
        "press_name": press,
        "dataset": parts[0],
        "data_dir": "__".join(before[:start]) or None,
        "model": "__".join(before[start:]).replace("--", "/"),
        "kept": None if press in THRESHOLD_PRESSES else 1 - value,
    }


def _take_suffix(part: str, extra: dict[str, Any]) -> bool:
    """Read one of the optional last parts of a name; False: it is none of them."""
    if part == "query_aware":
        extra["query_aware"] = True
        return True
    for prefix, name, kind in (
        ("fraction", "fraction", float),
        ("max_context", "max_context_length", int),
        ("key_channel_cr", "key_channel_compression_ratio", float),
        ("needle_depth", "needle_depth", str),
    ):
        if part.startswith(prefix):
            try:
                extra[name] = kind(part.removeprefix(prefix))
            except ValueError:
                return False
            return True
    return False


def read_runs(folder: str | Path) -> list[KvpressRun]:
    """All runs under a folder; a repeated run lies in a folder ``1``, ``2``, ... of the first.

    Raises:
        UserError: no run is there, or a file of one cannot be read.
    """
    root = Path(folder)
    runs = [read_run(path.parent) for path in sorted(root.rglob("metrics.json"))]
    if not runs:
        raise UserError(f"{root} holds no results of kvpress (no metrics.json anywhere in it)")
    return runs


def read_run(folder: Path) -> KvpressRun:
    """One run, finished or not; ``UserError`` for files that cannot be read."""
    config = _config(folder)
    named: dict[str, Any] = {}
    if not config:
        # a repeated run has its name one level up
        own = folder.parent.name if folder.name.isdecimal() else folder.name
        named = parse_name(own)
    press = str(config.get("press_name", named.get("press_name", "")))
    return KvpressRun(
        folder,
        str(config.get("dataset", named.get("dataset", ""))),
        config.get("data_dir", named.get("data_dir")) or None,
        str(config.get("model", named.get("model", ""))),
        press,
        _kept(folder, config, press, named),
        bool(config.get("query_aware", named.get("query_aware", False))),
        dict(_leaves(read_json(folder / "metrics.json"))),
        bool(config),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    content = read_yaml(path, "restore it, or delete it")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings of kvpress; restore it, or delete it")
    return content


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of any nesting, with where they stand."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}/{name}" if path else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}/{number}" if path else str(number))


def _kept(
    folder: Path, config: Mapping[str, Any], press: str, named: Mapping[str, Any]
) -> float | None:
    """Measured by the run if its predictions say so, else from its settings."""
    removed = _mean_removed(folder / "predictions.csv")
    if removed is None and press == "no_press":
        removed = 0.0
    if removed is None and press not in THRESHOLD_PRESSES:
        removed = config.get("head_compression_ratio") or config.get("compression_ratio")
    if removed is None:
        return named.get("kept")
    return 1 - float(removed)


def _mean_removed(path: Path) -> float | None:
    """Mean of the column ``compression_ratio``; None without the file or the column."""
    if not path.exists():
        return None
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = csv.DictReader(io.StringIO(read_text(path, newline="")))
        values = [float(row["compression_ratio"]) for row in rows if row.get("compression_ratio")]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); restore it") from error
    return sum(values) / len(values) if values else None
