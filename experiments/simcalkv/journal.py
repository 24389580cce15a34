"""Rows that were measured, on disk as soon as they are: a run that was cut short goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from catekv.errors import UserError
from catekv.files import read_text, refusal


class Journal:
    """One line per row of a run, kept until the run's own files are written.

    The file's name holds a digest of what is measured, so that only the same command goes on with
    it and no other one can overwrite it. A line that was cut off by the end of its process is
    passed over. Nothing is created before the first row.

    Args:
        folder: where the results go.
        name: first part of the file's name.
        recipe: everything that decides the numbers, as JSON.

    Attributes:
        rows: what is known already, by position.

    Raises:
        UserError: the file is there and cannot be read, or cannot be written.
    """

    def __init__(self, folder: Path, name: str, recipe: Mapping[str, Any]):
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode())
        self.path = folder / f"{name}.unfinished-{digest.hexdigest()[:12]}.jsonl"
        self._stream: TextIO | None = None
        self.rows: dict[int, Any] = {}
        try:
            text = read_text(self.path) if self.path.exists() else ""
        except UserError as error:
            raise UserError(f"{error}, or remove it to begin anew") from error
        for line in text.splitlines():
            try:
                found = json.loads(line)
                self.rows[int(found["row"])] = found["value"]
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue

    def add(self, row: int, value: Any) -> None:
        """Keep what was measured on a row."""
        self.rows[row] = value
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self.path.open("a", encoding="utf-8")
                if self._stream.tell():
                    self._stream.write("\n")  # ends a line that was cut off
            self._stream.write(json.dumps({"row": row, "value": value}) + "\n")
            self._stream.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._close()  # which tries to write once more
            raise refusal(f"cannot write {self.path}", error) from None

    def remove(self) -> None:
        """Everything is in the run's own files now."""
        self._close()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(f"cannot remove {self.path}", error) from None

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
