"""The records of a fidelity run: a journal beside a manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.records import locks
from catekv.evaluation.records.journal import Form, Journal, read_rows
from catekv.evaluation.records.recipe import refuse_other
from catekv.evaluation.report.write import MARKDOWN, PAGE
from catekv.files import read_object, refusal, refuse_foreign, write_json

MANIFEST, RECORDS, SUMMARY = "fidelity.json", "fidelity.jsonl", "summary.json"
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


_NAMES = {field.name for field in fields(FidelityRecord)}
FORM: Form[FidelityRecord] = Form(
    "record of a fidelity run",
    lambda content: FidelityRecord(**{k: v for k, v in content.items() if k in _NAMES}),
    asdict,
    attrgetter("key"),
    "remove the line, and the same command measures it again",
)


@contextlib.contextmanager
def opened(
    folder: Path, configuration: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> Iterator[Journal[FidelityRecord]]:
    """The journal of a folder, held for one command.

    Raises:
        UserError: another command holds the folder, it cannot be written, or it holds records of
            another configuration or files of somebody else.
    """
    with locks.claimed(folder):
        manifest, path = folder / MANIFEST, folder / RECORDS
        refuse_foreign(folder, (RECORDS, SUMMARY, PAGE, MARKDOWN), MANIFEST)
        earlier = _configuration(manifest) if manifest.exists() else None
        if overwrite:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise refusal(f"cannot write results to {folder}", error) from error
        elif earlier is not None and path.exists():
            _check_same(folder, earlier, configuration, resume)
        write_json(manifest, {"configuration": dict(configuration)})
        with Journal(path, FORM) as journal:
            yield journal


def _configuration(manifest: Path) -> dict[str, Any]:
    """The configuration of the run that wrote a manifest; ``UserError`` for another file."""
    remedy = "restore it, or choose another folder with --output"
    found = read_object(manifest, remedy).get("configuration")
    if not isinstance(found, dict):
        raise UserError(f"{manifest} is no fidelity run's; {remedy}")
    return found


def _check_same(
    folder: Path, earlier: dict[str, Any], configuration: Mapping[str, Any], resume: bool
) -> None:
    remedy = "use --overwrite or another folder with --output"
    if not resume:
        raise UserError(f"{folder} holds results and --no-resume was given; {remedy}")
    held = {name: earlier.get(name) for name in configuration}
    refuse_other(folder, held, configuration, remedy)


def read_records(path: Path) -> list[FidelityRecord]:
    """The records of a file, in order; ``UserError`` for a line that is none."""
    return read_rows(path, FORM)
