"""Where the rows of a benchmark come from: a path, the hub, or a generator that was asked for.

Generated rows never stand in for missing data: they are used where somebody says
``source=built-in``, or where the benchmark itself consists of generated rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from catekv.errors import UserError
from catekv.files import hub_answers, read_text
from catekv.tasks.rows.rows import naming, read_rows

SOURCES = ("auto", "path", "hub", "built-in")
#: folder with the data of all benchmarks, a sub-folder each
DATA_FOLDER = "CATEKV_DATA"
BUILT_IN = "built-in"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of every task that is made of rows.

    Attributes:
        path: file with the rows, or a folder that holds it.
        source: ``path``, ``hub``, ``built-in`` (generated rows of the same shape) or ``auto``: the
            path if one is given, the folder named by the environment variable ``CATEKV_DATA``, then
            the hub.
    """

    path: str | None = None
    source: str = "auto"

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"source={self.source!r}; use one of {', '.join(SOURCES)}")
        if self.path is not None and self.source not in ("auto", "path"):
            raise UserError(f"path= and source={self.source} exclude each other; give one of them")


class Hub(NamedTuple):
    """A data set on the hub, as ``datasets.load_dataset`` takes it."""

    repository: str
    configuration: str | None = None
    split: str = "test"


class Rows(NamedTuple):
    """Rows and where they come from: ``built-in``, ``file:NAME:HASH`` or ``hub:NAME@REVISION``.

    ``places`` says where each row stands, for errors about its fields; ``origin`` what the places
    are in.
    """

    rows: Sequence[dict[str, Any]]
    data: str
    origin: str = ""
    places: Sequence[str] = ()

    def parsed(self, parse: Callable[[int, dict[str, Any]], Any]) -> Iterator[Any]:
        """``parse(position, row)`` of every row; errors about fields name file and line."""
        for position, row in enumerate(self.rows):
            place = self.places[position] if self.places else f"row {position}"
            with naming(self.origin or self.data, place):
                yield parse(position, row)


def load_rows(
    task: str,
    options: DataOptions,
    *,
    files: Sequence[str],
    hub: Hub | None,
    built_in: Callable[[], Sequence[dict[str, Any]]] | None,
    how_to_get: str,
    built_in_is_default: bool = False,
) -> Rows:
    """The rows of a task.

    Args:
        task: full name; its first part is the sub-folder of ``CATEKV_DATA``.
        files: names that the file may have in a folder, the usual one first.
        hub: the data set on the hub, if there is one.
        built_in: generated rows of the same shape, if there are any.
        how_to_get: what to download and from where, for the error message.
        built_in_is_default: the benchmark itself is generated; then ``auto`` without a path is the
            generator.

    Raises:
        UserError: there are no rows; the message says what to download and where to put it.
    """
    source = options.source
    if source == "path" and options.path is None:
        raise UserError(f"{task}: source=path needs path=FILE")
    if options.path is not None:
        return file_rows(find_file(task, Path(options.path).expanduser(), files))
    if source == "built-in" or (source == "auto" and built_in_is_default):
        if built_in is None:
            raise UserError(f"{task} has no built-in rows; {how_to_get}")
        return Rows(list(built_in()), BUILT_IN)
    folder = os.environ.get(DATA_FOLDER)
    if folder and source == "auto":
        found = _search(Path(folder).expanduser(), task.split("/")[0], files)
        if found is not None:
            return file_rows(found)
    reason = ""
    if hub is not None:
        try:
            return hub_rows(hub)
        except UserError as error:
            reason = f" ({error})"
    remedy = f"{how_to_get} and give path=FILE, or put {files[0]} into ${DATA_FOLDER}"
    if built_in is not None:
        remedy += "; source=built-in takes generated rows of the same shape instead"
    raise UserError(f"{task}: its data are not here{reason}; {remedy}")


def find_file(task: str, path: Path, files: Sequence[str]) -> Path:
    """``path`` if it is a file, or the one of ``files`` in it; ``UserError`` names them."""
    if path.is_dir():
        found = _search(path, task.split("/")[0], files)
        if found is None:
            raise UserError(f"{task}: {path} holds none of {', '.join(files)}")
        return found
    if not path.exists():
        raise UserError(f"{task}: there is no file {path}")
    return path


def _search(folder: Path, family: str, files: Sequence[str]) -> Path | None:
    for place in (folder / family, folder):
        for name in files:
            if (place / name).exists():
                return place / name
    return None


def file_rows(path: Path) -> Rows:
    """All rows of a JSON, JSONL, CSV or Parquet file."""
    if path.suffix in (".csv", ".parquet"):
        rows = _table_rows(path)
        places = [f"row {number}" for number in range(len(rows))]
    else:
        numbered = read_rows(path)
        places, rows = [place for place, _ in numbered], [row for _, row in numbered]
    return Rows(rows, data_name(path), str(path), places)


def data_name(path: Path) -> str:
    """``file:NAME:`` and 16 digits of the content's SHA-256."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the permissions") from error
    return f"file:{path.name}:{digest}"


def _table_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        import csv
        import io

        try:
            stream = io.StringIO(read_text(path, newline=""), newline="")
            rows = [dict(row) for row in csv.DictReader(stream)]
        except csv.Error as error:
            raise UserError(f"cannot read {path}: {error}") from error
    else:
        datasets = _datasets("reading Parquet files")
        try:
            rows = list(datasets.Dataset.from_parquet(str(path)))
        except Exception as error:
            raise UserError(f"cannot read {path} as Parquet: {_first_line(error)}") from None
    if not rows:
        raise UserError(f"{path} holds no row")
    return rows


def hub_rows(hub: Hub) -> Rows:
    """The rows of a data set on the hub (downloaded once, then from the local cache).

    Raises:
        UserError: the package ``datasets`` is missing, or the hub cannot be reached.
    """
    datasets = _datasets("loading from the hub")
    if not hub_answers():
        raise UserError("the hub cannot be reached from here")
    try:
        data = datasets.load_dataset(hub.repository, hub.configuration, split=hub.split)
    except Exception as error:
        raise UserError(f"{hub.repository} cannot be loaded: {_first_line(error)}") from None
    return Rows(list(data), f"hub:{hub.repository}@{_revision(hub.repository)}")


def _revision(repository: str) -> str:
    """Commit of a data set on the hub, for the record; ``unknown`` when only a copy is here."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(repository, timeout=10).sha)
    except Exception:
        return "unknown"


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{what} needs the package datasets; install it with pip install 'catekv[data]'"
        ) from None
    return datasets


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
