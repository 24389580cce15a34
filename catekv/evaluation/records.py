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
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from catekv.errors import UserError

MANIFEST = "manifest.json"
_OWN_PATTERNS = (MANIFEST, "samples*.jsonl", "summary.*", "report.html", "*.lock", "*.partial")

#: ``error["type"]`` of a sample that was left out, e.g. because the model's window is too short
SKIPPED = "Skipped"

Key = tuple[str, int, int, str, str, str]


@dataclass(frozen=True)
class Record:
    """One sample under one method; a failed one has ``error`` and no score.

    ``length`` is the target in tokens (0: as the file says), ``prompt_tokens`` what the prompt
    really had. ``kept_tokens`` is the mean over layers and KV heads, ``kept`` the tokens per layer
    and head. ``compressed_tokens`` is the part of the prompt that was compressed. Bytes are those
    of the cache right after compression; seconds are wall clock; ``peak_bytes`` is CUDA's
    allocation peak (None elsewhere).

    ``batch`` samples were measured at once: the seconds and the peak are those of the whole batch,
    bytes are this sample's share. ``context_questions`` samples were answered from one compressed
    context: each of them carries the seconds of that one prefill and compression, and its own of
    question and decode. ``scoring`` is what the metric needs besides the references.
    """

    task: str
    length: int
    index: int
    method: str
    question: str
    method_hash: str
    sample_hash: str = ""
    prediction: str = ""
    references: tuple[str, ...] = ()
    metric: str = "all"
    wording: str = ""
    official: float | None = None
    strict: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    target_length: int = 0
    compressed_tokens: int = 0
    kept_tokens: float | None = None
    kept_share: float | None = None
    asked_share: float | None = None
    kept: tuple[tuple[int, ...], ...] = ()
    budget: int | None = None
    stored_bytes: int | None = None
    full_bytes: int | None = None
    new_tokens: int = 0
    prefill: str = ""
    prefill_seconds: float | None = None
    compress_seconds: float | None = None
    question_seconds: float | None = None
    decode_seconds: float | None = None
    decode_steps: int = 0
    peak_bytes: int | None = None
    depths: tuple[float, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    context_questions: int = 1
    error: dict[str, str] | None = None

    @property
    def key(self) -> Key:
        return (
            self.task,
            self.length,
            self.index,
            self.method,
            self.question,
            self.method_hash,
        )

    def to_line(self) -> str:
        """One JSON line; empty fields are left out."""
        filled = {
            name: value
            for name in _FIELDS
            if (value := getattr(self, name)) not in (None, "", (), {})
        }
        return json.dumps(filled, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        if not values.keys() <= _FIELDS.keys():
            values = {name: value for name, value in values.items() if name in _FIELDS}
        for name in ("references", "depths"):
            if name in values:
                values[name] = tuple(values[name])
        if "kept" in values:
            values["kept"] = tuple(map(tuple, values["kept"]))
        return cls(**values)

    @property
    def skipped(self) -> bool:
        """Whether this is no failure but a sample that was left out, with its reason."""
        return self.error is not None and self.error.get("type") == SKIPPED


#: The fields in order; looked up once, because reading thousands of records must be quick.
_FIELDS = dict.fromkeys(item.name for item in fields(Record))


def read_records(path: Path) -> list[Record]:
    """All records of one file, in order; a torn last line is left out.

    Raises:
        UserError: if the file cannot be read or another line is no record.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the permissions") from error
    lines = content.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_dict(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path} line {number} is no record of a sample; delete that line (its sample is "
                "then measured again) or use --overwrite"
            ) from error
    return records


def merge(records: Iterable[Record]) -> dict[Key, Record]:
    """One record per key, sorted by key: a successful one beats an error, a later one an earlier.

    The result does not depend on how many processes wrote the records.
    """
    best: dict[Key, Record] = {}
    for record in records:
        earlier = best.get(record.key)
        if earlier is None or record.error is None or earlier.error is not None:
            best[record.key] = record
    return dict(sorted(best.items()))


class RunDirectory:
    """A folder of results, opened for writing by one process (or one rank of several).

    Args:
        path: the folder; made if absent.
        rank, world: this process of a data-parallel run; every rank appends to a file of its own.

    Use as a context manager: it holds a lock on the rank's file until it is closed.
    """

    def __init__(self, path: str | Path, rank: int = 0, world: int = 1) -> None:
        self.path = Path(path)
        self.rank = rank
        self.samples_path = self.path / (
            "samples.jsonl" if world == 1 else f"samples.rank{rank}.jsonl"
        )
        self._stream: IO[str] | None = None

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
            content = json.loads(file.read_text())
            return dict(content)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read as JSON; use --overwrite or another folder"
            ) from error

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
            _lock(stream, self.path)
            heal(self.samples_path)
        except OSError as error:
            raise UserError(
                f"cannot write {self.samples_path}: {error.strerror}; choose another folder with "
                "--output or change its permissions"
            ) from error
        self._stream = stream
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
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
        write_text(self.path / "samples.jsonl", "".join(r.to_line() for r in records))
        for file in self.path.glob("samples.rank*.jsonl"):
            file.unlink()

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


def _lock(stream: IO[str], folder: Path) -> None:
    """Refuse a second writer; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:
        # Windows has no fcntl; two writers are then the user's care
        return
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with contextlib.suppress(OSError):
            stream.close()
        raise UserError(
            f"another run is writing to {folder}; wait for it or choose another folder with "
            "--output"
        ) from error
    except OSError:
        # some network file systems know no locks; the records stay valid, only unguarded
        return
