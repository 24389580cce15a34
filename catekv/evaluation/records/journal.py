"""Rows that were measured, on disk as soon as they are: what a run that was cut short goes on with.

A journal is a file of JSON lines that is only ever appended to. A line counts from its line end
on: what a kill left of one is passed over by readers and cut off by the next writer.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from catekv.errors import UserError
from catekv.evaluation.records import locks
from catekv.files import read_bytes, refusal, write_atomically

Row = TypeVar("Row")
#: what turning a line of another form into a row may raise
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Form(Generic[Row]):
    """What the lines of a journal say.

    Attributes:
        what: a line in words, for errors.
        decode, encode: a JSON value becomes a row, and back; ``decode`` raises for other values.
        key: what a row measures; of several with one key the last counts.
        remedy: for the error about a line that is no row. None: such lines are passed over, and
            what they held is measured again.
    """

    what: str
    decode: Callable[[Any], Row]
    encode: Callable[[Row], Any]
    key: Callable[[Row], Hashable]
    remedy: str | None = None


def read_rows(path: Path, form: Form[Row]) -> list[Row]:
    """All rows of a file, in order.

    Raises:
        UserError: the file cannot be read, or a line is no row.
    """
    return _rows_behind(path, form, 0)[0]


def line_of(value: Any) -> bytes:
    """A JSON value as a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # half a character, which UTF-8 does not have but JSON can spell
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class Journal(Generic[Row]):
    """A file of rows, of which one process at a time is the writer.

    Args:
        path: the file.
        form: what its lines say.
        lazily: whether the file is made with the first row only.

    Reading needs nothing else. To write, use it as a context manager: it then holds a lock on the
    file, which ends with the process, however it ends.
    """

    def __init__(self, path: Path, form: Form[Row], *, lazily: bool = False) -> None:
        self.path = path
        self.form = form
        self._lazily = lazily
        self._descriptor: int | None = None
        #: lines of this process, to write again where somebody takes the file away
        self._lines: list[bytes] = []
        self._size = 0
        self._read = 0
        self._rows: dict[Any, Row] = {}

    @property
    def rows(self) -> dict[Any, Row]:
        """All rows on the disk, by key; ``UserError`` for a line that is none."""
        for row in self.new_rows():
            self._rows[self.form.key(row)] = row
        return self._rows

    def new_rows(self) -> list[Row]:
        """The rows written since the last call, by whichever process."""
        if not self.path.exists():
            return []
        found, self._read = _rows_behind(self.path, self.form, self._read)
        return found

    def append(self, *rows: Row) -> None:
        """Write rows and wait until they are on the disk.

        Raises:
            UserError: the file cannot be written, e.g. a full disk; or somebody deleted, replaced
                or cut it, where all rows of this process are written again first.
        """
        descriptor = self._opened()
        self._check_kept(descriptor)
        lines = [line_of(self.form.encode(row)) for row in rows]
        data = memoryview(b"".join(lines))
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._size)
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space and start the same "
                "command again, it goes on where it stopped"
            ) from error
        self._lines += lines
        self._size += sum(map(len, lines))

    def remove(self) -> None:
        """Delete the file: everything is elsewhere now."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(f"cannot remove {self.path}", error) from error
        finally:
            self._close()

    def __enter__(self) -> Journal[Row]:
        if not self._lazily or self.path.exists():
            self._descriptor = self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._descriptor is not None:
                self._check_kept(self._descriptor)
        finally:
            self._close()

    def _opened(self) -> int:
        if self._descriptor is None:
            if not self._lazily:
                raise RuntimeError(f"{self.path} is not open; use it in a with statement")
            self._descriptor = self._open()
        return self._descriptor

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise refusal(f"cannot write {self.path}", error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"cannot write {self.path}: it is no regular file; remove it")
            # the lock comes first: an unfinished line may belong to a run that still writes it
            locks.lock(descriptor, self.path.parent)
            self._size = _cut_torn_line(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise refusal(f"cannot write {self.path}", error) from error
        except UserError:
            os.close(descriptor)
            raise
        self._lines = []
        return descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _check_kept(self, descriptor: int) -> None:
        """Raise ``UserError`` if somebody else deleted, replaced or cut the file; what this process
        measured is then written again."""
        with contextlib.suppress(OSError):
            there = self.path.stat()
            if os.path.samestat(there, os.fstat(descriptor)) and there.st_size >= self._size:
                return
        # a file that was deleted or replaced still is what this process holds open
        contents = [_content(descriptor)]
        if self.path.exists():
            contents.append(read_bytes(self.path))
        contents += self._lines
        # a file cut within a line ends with a part of one
        whole = (line for content in contents for line in content.split(b"\n")[:-1] if line)
        write_atomically(self.path, b"".join(line + b"\n" for line in dict.fromkeys(whole)))
        raise UserError(
            f"{self.path} was deleted, replaced or cut during the run; the {len(self._lines)} "
            "records of this run were written again, start the same command again and it measures "
            "what is missing"
        )


def _rows_behind(path: Path, form: Form[Row], start: int) -> tuple[list[Row], int]:
    """The rows behind a position in bytes, and where the last whole line ends."""
    content = read_bytes(path, start=start)
    lines = content.split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(form.decode(json.loads(line)))
        except _DAMAGED as error:
            if form.remedy is None:
                continue
            if start:
                number += read_bytes(path)[:start].count(b"\n")
            raise UserError(f"{path} line {number} is no {form.what}; {form.remedy}") from error
    return rows, start + content.rfind(b"\n") + 1


def _cut_torn_line(descriptor: int) -> int:
    """Cut off a last line that a kill left unfinished; returns the bytes that are left."""
    content = _content(descriptor)
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.ftruncate(descriptor, whole)
        os.fsync(descriptor)
    return whole


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as stream:
        stream.seek(0)
        return stream.read()
