"""What a report is made of: runs, efficiency results, head masks, results of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.efficiency.measurement import Measurement
from catekv.evaluation.predictions.kvpress_runs import KvpressRun
from catekv.evaluation.predictions.kvpress_runs import read_run as read_kvpress_run
from catekv.evaluation.records.records import MANIFEST, Record, RunDirectory
from catekv.files import read_json, read_object
from catekv.methods.head_mask import (
    META_FILE,
    STATISTICS_FILE,
    HeadMask,
    load_statistics,
    percents_in,
)

EFFICIENCY = "efficiency.json"
#: What a run of kvpress leaves: its scores, and one of the others at least.
_KVPRESS, _KVPRESS_OTHERS = "metrics.json", ("predictions.csv", "config.yaml")
#: What a check concluded, beside the folders that it concluded it from.
VERDICT = "verdict.json"
#: Which mask of a folder is shown.
SHOWN_RATIO = 0.4
#: Folders below a given one that are looked into.
_DEPTH = 4


@dataclass(frozen=True)
class Run:
    """One run directory as it was read; ``notes`` say what was odd about it."""

    path: Path
    name: str
    manifest: dict[str, Any]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Efficiency:
    """Results of ``catekv efficiency``."""

    path: Path
    name: str
    content: dict[str, Any]
    rows: tuple[Measurement, ...]


@dataclass
class Inputs:
    """Everything that was found, in the order of the arguments; ``problems``: what was left out;
    ``verdicts``: sentences of checks."""

    runs: list[Run] = field(default_factory=list)
    efficiency: list[Efficiency] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    needles: list[Path] = field(default_factory=list)
    kvpress: list[KvpressRun] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.runs or self.efficiency or self.masks or self.needles or self.kvpress)


def read_inputs(paths: Sequence[str | Path]) -> Inputs:
    """Read all that lies in some folders and files.

    A folder that is none of the known kinds is searched; what cannot be read in it is left out and
    named in ``problems``. What is given itself must be readable.

    Args:
        paths: run directories, folders of them, folders with ``efficiency.json`` or that file,
            folders of head masks, result folders of kvpress, and files with needle results.

    Raises:
        UserError: nothing there, or unreadable.
    """
    found = Inputs()
    seen: set[Path] = set()
    for given in map(Path, paths):
        if not given.exists():
            raise UserError(f"{given} is no run directory: nothing is there; check the path")
        before = _count(found)
        if not _read(given, given.name or str(given), found, seen):
            _search(given, found, seen)
        if _count(found) == before and given.resolve() not in seen:
            raise UserError(
                f"{given} is no run directory and holds none (no {MANIFEST}, no {EFFICIENCY}); "
                "give folders that `catekv evaluate`, `catekv efficiency` or kvpress made"
            )
    return found


def _count(found: Inputs) -> int:
    parts = (
        found.runs,
        found.efficiency,
        found.masks,
        found.needles,
        found.kvpress,
        found.problems,
    )
    return sum(len(part) for part in parts)


def _read(path: Path, name: str, found: Inputs, seen: set[Path]) -> bool:
    """Add what a path itself is; False if it is of no known kind."""
    if path.resolve() in seen:
        return True
    if path.is_dir():
        known = False
        if (path / VERDICT).is_file():
            found.verdicts.append(read_verdict(path / VERDICT))
        if (path / MANIFEST).is_file():
            found.runs.append(read_run(path, name))
            known = True
        if (path / EFFICIENCY).is_file():
            found.efficiency.append(read_efficiency(path / EFFICIENCY, name))
            known = True
        others = any((path / name).is_file() for name in _KVPRESS_OTHERS)
        if others and (path / _KVPRESS).is_file():
            found.kvpress.append(read_kvpress_run(path))
            known = True
        if (path / META_FILE).is_file() and any(path.glob("head_type_p*.csv")):
            _check_masks(path)
            found.masks.append(path)
            known = True
    elif path.name == EFFICIENCY:
        found.efficiency.append(read_efficiency(path, path.parent.name))
        known = True
    else:
        found.needles.append(path)
        known = True
    if known:
        seen.add(path.resolve())
    return known


def shown_mask(folder: Path) -> HeadMask:
    """The mask of a folder at the ratio that is shown, or at the nearest one that it holds."""
    held = percents_in(folder)
    if (folder / STATISTICS_FILE).is_file() or not held:
        return HeadMask.load(folder, default_ratio=SHOWN_RATIO)
    return HeadMask.load(held[min(held, key=lambda percent: abs(percent - 100 * SHOWN_RATIO))])


def _check_masks(folder: Path) -> None:
    """Read what the report will show of a folder of head masks, so that it is known now whether
    that can be read; ``UserError`` if not."""
    shown_mask(folder)
    if (folder / STATISTICS_FILE).is_file():
        load_statistics(folder / STATISTICS_FILE)


def read_verdict(file: Path) -> str:
    """The sentence that a check wrote; ``UserError`` if the file is not of that form."""
    sentence = read_object(file, "run the check again").get("sentence")
    if not isinstance(sentence, str):
        raise UserError(f"{file} holds no verdict of `catekv check`; run the check again")
    return sentence


def _search(root: Path, found: Inputs, seen: set[Path]) -> None:
    for folder in _below(root, _DEPTH):
        name = str(folder.relative_to(root))
        try:
            _read(folder, name, found, seen)
        except UserError as error:
            found.problems.append(f"{name}: {error}")


def _below(root: Path, depth: int) -> Iterator[Path]:
    """All folders below one, those of a folder before their own folders."""
    try:
        inner = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}; check the permissions") from error
    for folder in inner:
        if not folder.name.startswith("."):
            yield folder
            if depth > 1 and not (folder / MANIFEST).is_file():
                yield from _below(folder, depth - 1)


def read_run(path: Path, name: str = "") -> Run:
    """One run directory, finished or not.

    Raises:
        UserError: no manifest, or unreadable files.
    """
    directory = RunDirectory(path)
    manifest = directory.read_manifest() if path.is_dir() else None
    if manifest is None:
        raise UserError(f"{path} is no run directory (no {MANIFEST}); give one that evaluate made")
    records = tuple(directory.records().values())
    return Run(path, name or path.name, manifest, records, tuple(_notes(path, manifest, records)))


def _notes(path: Path, manifest: dict[str, Any], records: Sequence[Record]) -> Iterator[str]:
    torn = [file.name for file in RunDirectory(path).sample_files() if not _ends(file)]
    if torn:
        yield (
            f"the last line of {', '.join(torn)} is torn (a run was killed, or is writing); it is "
            "left out, the same command measures its sample again"
        )
    if not records:
        yield "no sample has been measured yet"
    known = {(label, method["hash"]) for label, method in manifest["methods"].items()}
    foreign = sum((record.method, record.method_hash) not in known for record in records)
    if foreign:
        yield f"{foreign} records of methods that the manifest does not name are left out"
    failed = sum(record.error is not None and not record.skipped for record in records)
    if failed:
        yield f"{failed} of {len(records)} measurements failed; their records say why"


def _ends(file: Path) -> bool:
    """Whether a file ends with a whole line."""
    with file.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            return True
        stream.seek(-1, 2)
        return stream.read() == b"\n"


def read_efficiency(file: Path, name: str = "") -> Efficiency:
    """Results of ``catekv efficiency --output``; ``UserError`` if the file is not of that form."""
    names = {item.name for item in fields(Measurement)}
    try:
        content = read_json(file)
        if not isinstance(content["results"], list) or not isinstance(content["title"], str):
            raise ValueError("no list of results")
        rows = tuple(
            Measurement(**{key: value for key, value in row.items() if key in names})
            for row in content["results"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read as results of `catekv efficiency`; measure again with --output"
        ) from error
    return Efficiency(file, name or file.parent.name, content, rows)
