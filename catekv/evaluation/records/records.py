"""The run directory: a manifest, and one JSON line per finished sample that survives a kill.

``manifest.json`` is replaced atomically; ``samples*.jsonl`` are only ever appended to, one line per
record, flushed and synced. A line torn by a kill is cut off when the file is opened again, and
its sample is measured again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from catekv.errors import UserError
from catekv.evaluation.records import locks
from catekv.evaluation.records.record import SKIPPED as SKIPPED
from catekv.evaluation.records.record import Key as Key
from catekv.evaluation.records.record import Record as Record
from catekv.evaluation.records.record import merge as merge
from catekv.evaluation.records.record import read_records as read_records
from catekv.text_files import read_text

MANIFEST = "manifest.json"
_OWN_PATTERNS = (MANIFEST, "samples*.jsonl", "summary.*", "report.html", "*.partial")


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
        self.samples_path = self.path / (
            "samples.jsonl" if world == 1 else f"samples.rank{rank}.jsonl"
        )
        self._stream: IO[str] | None = None

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for one command, of however many processes (first rank only).

        Raises:
            UserError: another command holds it, a process of one still writes to it, or the folder
                cannot be made.
        """
        with locks.claimed(self.path):
            for file in self.path.glob("samples*.jsonl"):
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
            if overwrite:
                self.delete()
            earlier = self.read_manifest()
            if earlier is not None:
                self._check_same(earlier, manifest, resume)
                manifest = _joined(earlier, manifest)
            elif any(self.path.glob("samples*.jsonl")):
                raise UserError(
                    f"{self.path} holds samples but no {MANIFEST}; use --overwrite or another "
                    "folder"
                )
            write_text(
                self.path / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            )
        except OSError as error:
            raise UserError(
                f"cannot write results to {self.path}: {error.strerror}; choose another folder "
                "with --output or change its permissions"
            ) from error

    def delete(self) -> None:
        """Remove what runs wrote here, and nothing else."""
        for pattern in _OWN_PATTERNS:
            for file in self.path.glob(pattern):
                file.unlink()

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest, or None if there is none."""
        file = self.path / MANIFEST
        if not file.exists():
            return None
        try:
            content = dict(json.loads(read_text(file)))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read as JSON; use --overwrite or another folder"
            ) from error
        methods = content.get("methods")
        for label, method in methods.items() if isinstance(methods, dict) else ():
            if not isinstance(method, dict) or not {"hash", "name"} <= method.keys():
                raise UserError(
                    f"{file} does not say what its method {label!r} is; use --overwrite or another "
                    "folder"
                )
        return content

    def _check_same(self, earlier: dict[str, Any], wanted: dict[str, Any], resume: bool) -> None:
        remedy = "use --overwrite or another folder with --output"
        if not resume:
            raise UserError(f"{self.path} holds results and --no-resume was given; {remedy}")
        if earlier.get("config_hash") != wanted["config_hash"]:
            old, new = earlier.get("configuration", {}), wanted["configuration"]
            different = sorted(
                name for name in set(old) | set(new) if old.get(name) != new.get(name)
            )
            raise UserError(
                f"{self.path} holds results of another configuration "
                f"(different: {', '.join(different) or 'hash'}); {remedy}"
            )
        for label, method in wanted["methods"].items():
            before = earlier.get("methods", {}).get(label)
            if before is not None and before["hash"] != method["hash"]:
                raise UserError(
                    f"{self.path} holds results of method {label!r} with other options or another "
                    f"mask; give it another label (LABEL=METHOD), or {remedy}"
                )

    def __enter__(self) -> RunDirectory:
        try:
            stream = self.samples_path.open("a", encoding="utf-8")
            # the lock comes first: an unfinished line may belong to a run that is still writing it
            locks.lock(stream.fileno(), self.path)
            heal(self.samples_path)
        except OSError as error:
            raise UserError(
                f"cannot write {self.samples_path}: {error.strerror}; choose another folder with "
                "--output or change its permissions"
            ) from error
        except UserError:
            stream.close()
            raise
        self._stream = stream
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            # where a record could not be written, closing tries again, and the error was reported
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def append(self, record: Record) -> None:
        """Write one record and wait until it is on the disk."""
        if self._stream is None:
            raise RuntimeError("the run directory is not open; use it in a with statement")
        try:
            self._stream.write(record.to_line())
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.samples_path}: {error.strerror}; free some space and start "
                "the same command again, it goes on where it stopped"
            ) from error

    def records(self) -> dict[Key, Record]:
        """All records of all ranks, merged."""
        return merge(self._all_records())

    def replace_records(self, records: Iterable[Record]) -> None:
        """Put these records in the place of all that the folder holds, e.g. after re-scoring."""
        try:
            write_text(self.path / "samples.jsonl", "".join(r.to_line() for r in records))
            for file in self.path.glob("samples.rank*.jsonl"):
                file.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path / 'samples.jsonl'}: {error.strerror}; free some space or "
                "change its permissions, nothing is lost"
            ) from error

    def _all_records(self) -> Iterator[Record]:
        for file in sorted(self.path.glob("samples*.jsonl")):
            yield from read_records(file)

    def consolidate(self) -> None:
        """Merge the ranks' files into ``samples.jsonl``; a kill at any point loses nothing.

        Call it when no other rank writes any more.
        """
        if any(self.path.glob("samples.rank*.jsonl")):
            self.replace_records(self.records().values())


def heal(path: Path) -> None:
    """Cut off a last line that a kill left unfinished."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
            os.fsync(stream.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old or the new content, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _joined(earlier: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a folder that several commands filled: union of what they measured."""
    joined = {**wanted, "methods": {**earlier.get("methods", {}), **wanted["methods"]}}
    for name in ("tasks", "lengths", "questions"):
        before, now = earlier.get(name, []), wanted.get(name, [])
        joined[name] = [*before, *(item for item in now if item not in before)]
    joined["samples"] = max(earlier.get("samples", 0), wanted.get("samples", 0))
    joined["starts"] = [*earlier.get("starts", []), *wanted.get("starts", [])]
    return joined
