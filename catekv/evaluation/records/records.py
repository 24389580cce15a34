"""The run directory: a manifest, and one JSON line per finished sample that survives a kill.

``manifest.json`` is replaced atomically; ``samples*.jsonl`` are journals, one per process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.records import locks
from catekv.evaluation.records.journal import Journal, line_of
from catekv.evaluation.records.recipe import refuse_other
from catekv.evaluation.records.record import FORM
from catekv.evaluation.records.record import SKIPPED as SKIPPED
from catekv.evaluation.records.record import Key as Key
from catekv.evaluation.records.record import Record as Record
from catekv.evaluation.records.record import merge as merge
from catekv.evaluation.records.record import read_records as read_records
from catekv.files import leftovers, read_object, refuse_foreign, write_atomically, write_json

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
_OWN_NAMES = (MANIFEST, SAMPLES, "summary.json", "summary.md", "summary.csv", "report.html")
#: what the manifest of a run holds, however old it is
_FORM = {"methods": dict, "configuration": dict, "config_hash": str}
_RANK_SAMPLES = re.compile(r"samples\.rank\d+\.jsonl")


class RunDirectory:
    """A folder of results, opened for writing by one process (or one rank of several).

    Args:
        path: the folder; made if absent.
        rank, world: this process of a data-parallel run; every rank appends to a file of its own.

    Use as a context manager: it holds a lock on the rank's file until it is closed. What concerns
    the files of all ranks (:meth:`prepare`, :meth:`consolidate`, :meth:`replace_records`) belongs
    into :meth:`claimed`.
    """

    def __init__(self, path: str | Path, rank: int = 0, world: int = 1) -> None:
        self.path = Path(path)
        self.rank = rank
        self.samples_path = self.path / (SAMPLES if world == 1 else f"samples.rank{rank}.jsonl")
        self._journal = Journal(self.samples_path, FORM)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for one command, of however many processes (first rank only).

        Raises:
            UserError: another command holds it, a process of one still writes to it, or the folder
                cannot be made.
        """
        with locks.claimed(self.path):
            for file in self.sample_files():
                # the processes of a command may outlive its first
                with contextlib.suppress(OSError), file.open("rb") as stream:
                    locks.lock(stream.fileno(), self.path)
            yield

    def prepare(self, manifest: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Check that the folder may hold this run, and write its manifest (first rank only).

        Args:
            manifest: must hold ``configuration``, ``config_hash`` and ``methods`` (label to
                ``{"hash": ..., ...}``); other entries are for readers.
            resume: go on in a folder that holds records of the same configuration.
            overwrite: delete the records and reports in the folder first.

        Raises:
            UserError: the folder cannot be written, or holds another configuration's records.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite and (self.path / MANIFEST).exists():
                self.delete()
            earlier = self.read_manifest()
            if earlier is not None:
                self._check_same(earlier, manifest, resume)
                manifest = _joined(earlier, manifest)
            else:
                own = (*_OWN_NAMES, *(file.name for file in self.sample_files()))
                refuse_foreign(self.path, own, MANIFEST)
            write_json(self.path / MANIFEST, manifest)
        except OSError as error:
            raise UserError(
                f"cannot write results to {self.path}: {error.strerror}; choose another folder "
                "with --output or change its permissions"
            ) from error

    def delete(self) -> None:
        """Remove what runs wrote here, and nothing else.

        Raises:
            UserError: the manifest is none of ours, so that the other files may be none either.
        """
        self.read_manifest()
        own = [self.path / name for name in _OWN_NAMES]
        for file in (*own, *self.sample_files()):
            for old in (file, *leftovers(file)):
                old.unlink(missing_ok=True)

    def sample_files(self) -> list[Path]:
        """The files of records that are there, of all processes."""
        files = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(
            file for file in files if file.name == SAMPLES or _RANK_SAMPLES.fullmatch(file.name)
        )

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None if there is none; ``UserError`` for a file that is no run's."""
        file = self.path / MANIFEST
        if not file.exists():
            return None
        remedy = "restore it, or choose another folder"
        content = read_object(file, remedy)
        for name, kind in _FORM.items():
            if not isinstance(content.get(name), kind):
                raise UserError(f"{file} is no run's, its {name} is missing or damaged; {remedy}")
        for label, method in content["methods"].items():
            if not isinstance(method, dict) or not {"hash", "name"} <= method.keys():
                raise UserError(f"{file} does not say what its method {label!r} is; {remedy}")
        return content

    def _check_same(self, earlier: dict[str, Any], wanted: dict[str, Any], resume: bool) -> None:
        remedy = "use --overwrite or another folder with --output"
        if not resume:
            raise UserError(f"{self.path} holds results and --no-resume was given; {remedy}")
        if earlier["config_hash"] != wanted["config_hash"]:
            refuse_other(self.path, earlier["configuration"], wanted["configuration"], remedy)
            own = {"config_hash": wanted["config_hash"]}
            refuse_other(self.path, {"config_hash": earlier["config_hash"]}, own, remedy)
        for label, method in wanted["methods"].items():
            before = earlier.get("methods", {}).get(label)
            if before is not None and before["hash"] != method["hash"]:
                raise UserError(
                    f"{self.path} holds results of method {label!r} with other options or another "
                    f"mask; give it another label (LABEL=METHOD), or {remedy}"
                )

    def __enter__(self) -> RunDirectory:
        self._journal.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._journal.__exit__(kind, value, trace)

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on the disk; see :meth:`Journal.append`."""
        self._journal.append(record)

    def records(self) -> dict[Key, Record]:
        """All records of all ranks, merged."""
        return merge(self._all_records())

    def replace_records(self, records: Iterable[Record]) -> None:
        """Put these records in the place of all that the folder holds, e.g. after re-scoring."""
        write_atomically(self.path / SAMPLES, b"".join(line_of(r.to_dict()) for r in records))
        try:
            for file in self.sample_files():
                if file.name != SAMPLES:
                    file.unlink()
        except OSError as error:
            raise UserError(
                f"cannot remove the files of single processes in {self.path}: {error.strerror}; "
                "change its permissions, nothing is lost"
            ) from error

    def _all_records(self) -> Iterator[Record]:
        for file in self.sample_files():
            yield from read_records(file)

    def consolidate(self) -> None:
        """Merge the ranks' files into ``samples.jsonl``; a kill at any point loses nothing.

        Call it when no other rank writes any more.
        """
        if any(file.name != SAMPLES for file in self.sample_files()):
            self.replace_records(self.records().values())


def _joined(earlier: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder that several commands filled: union of what they measured."""
    joined = {**wanted, "methods": {**earlier.get("methods", {}), **wanted["methods"]}}
    for name in ("tasks", "lengths", "questions"):
        before, now = earlier.get(name, []), wanted.get(name, [])
        joined[name] = [*before, *(item for item in now if item not in before)]
    joined["samples"] = max(earlier.get("samples", 0), wanted.get("samples", 0))
    joined["starts"] = [*earlier.get("starts", []), *wanted.get("starts", [])]
    return joined
