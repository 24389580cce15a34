"""The records of a fidelity run: JSON lines that survive a kill, beside a manifest."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.records import locks
from catekv.evaluation.records.records import heal
from catekv.files import read_object, read_text, refusal, write_json

MANIFEST, RECORDS = "fidelity.json", "fidelity.jsonl"
Key = tuple[str, str]


@dataclass(frozen=True)
class FidelityRecord:
    """One passage under one column.

    Attributes:
        kind: ``text`` (its continuation was forced) or ``answers`` (the full model's own answer).
        passage, column: digests of the token ids, and of the method with its options and ratio.
        divergence: KL(full || method) in nats, mean over the forced tokens. agreement: share of
            them at which both prefer the same token. loss, full_loss: mean negative natural log
            likelihood of the forced tokens.
        kept_share: entries kept over tokens of the context. bytes: right after compression.
        refused: why the column cannot be measured on the passage; there are no numbers then.
    """

    kind: str
    source: str
    length: int
    index: int
    passage: str
    method: str
    ratio: float | None
    column: str
    tokens: int = 0
    context_tokens: int = 0
    kept_share: float = 0.0
    stored_bytes: int = 0
    full_bytes: int = 0
    divergence: float = 0.0
    agreement: float = 0.0
    loss: float = 0.0
    full_loss: float = 0.0
    refused: str | None = None

    @property
    def key(self) -> Key:
        return self.passage, self.column


@contextlib.contextmanager
def opened(
    folder: Path, configuration: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> Iterator[Records]:
    """The records of a folder, held for one command.

    Raises:
        UserError: another command holds the folder, it cannot be written, or it holds records of
            another configuration.
    """
    with locks.claimed(folder):
        manifest, path = folder / MANIFEST, folder / RECORDS
        try:
            if overwrite and manifest.exists():
                manifest.unlink()
                path.unlink(missing_ok=True)
            if path.exists():
                _check_same(folder, configuration, resume)
            write_json(manifest, {"configuration": dict(configuration)})
            heal(path)
            with path.open("a", encoding="utf-8") as stream:
                yield Records(path, stream)
        except OSError as error:
            raise refusal(f"cannot write results to {folder}", error) from error


def _check_same(folder: Path, configuration: Mapping[str, Any], resume: bool) -> None:
    remedy = "use --overwrite or another folder with --output"
    if not resume:
        raise UserError(f"{folder} holds results and --no-resume was given; {remedy}")
    earlier = read_object(folder / MANIFEST, remedy).get("configuration")
    if not isinstance(earlier, dict):
        raise UserError(f"{folder / MANIFEST} is no fidelity run's; {remedy}")
    different = sorted(name for name, value in configuration.items() if earlier.get(name) != value)
    if different:
        raise UserError(
            f"{folder} holds results of another configuration (different: "
            f"{', '.join(different)}); {remedy}"
        )


class Records:
    """All records of a folder by what they measure; new ones are on the disk at once."""

    def __init__(self, path: Path, stream: Any) -> None:
        self._stream = stream
        self._records = {record.key: record for record in read_records(path)}

    def add(self, records: Iterable[FidelityRecord]) -> None:
        for record in records:
            self._records[record.key] = record
            self._stream.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def get(self, key: Key) -> FidelityRecord | None:
        return self._records.get(key)


def read_records(path: Path) -> list[FidelityRecord]:
    """The records of a file.

    Raises:
        UserError: a line that is no record.
    """
    names = {field.name for field in fields(FidelityRecord)}
    records = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            content = json.loads(line)
            records.append(FidelityRecord(**{k: v for k, v in content.items() if k in names}))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} holds no record in line {number}; remove the line, and the same command "
                "measures it again"
            ) from error
    return records
