"""A whole fidelity run: passages, measurements, summary and report in one folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from catekv.errors import UserError
from catekv.evaluation.fidelity import page
from catekv.evaluation.fidelity.measuring import measure, named
from catekv.evaluation.fidelity.passages import Passage, passages_of
from catekv.evaluation.fidelity.records import SUMMARY, FidelityRecord, Key, opened
from catekv.evaluation.fidelity.settings import Column, Settings
from catekv.evaluation.fidelity.summary import Row, refusals, rows_of
from catekv.evaluation.records.journal import Journal
from catekv.evaluation.report import write
from catekv.evaluation.run.progress import BAR, LINES, NONE, Progress
from catekv.files import write_json
from catekv.methods import ModelShape
from catekv.methods.equal_memory import keeps_everything

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: What makes a run shorter.
_SHORTER = "fewer --samples, --methods or --ratios, smaller --lengths"

Records = Mapping[Key, FidelityRecord]


@dataclass(frozen=True)
class Outcome:
    """What a run found: a row per column and source; ``refused``: columns -> why they are not
    there; ``measured``: new records."""

    rows: list[Row]
    refused: dict[str, str]
    measured: int


def fidelity(
    model: CateKVModel,
    settings: Settings,
    output: Path,
    *,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    quiet: bool = False,
    foretell: bool = True,
) -> Outcome:
    """Measure what ``output`` does not hold yet; write the summary and the report.

    Args:
        model: as loaded; its own method is not used.
        output: folder of the results; a run that was interrupted, even killed, goes on in it.
        progress: show it on stderr; quiet: as plain lines for a log, not as a bar.
        foretell: say of a long run how long it will take.

    Raises:
        UserError: texts, tasks or methods that do not fit the model, a folder that may not hold
            the results, or no column that can be measured.
    """
    for column in settings.columns:
        method = column.spec.create()
        method.validate(model.shape)
        method.validate_model(settings.model_hash)
    if model.tokenizer is None:
        raise UserError("this model has no tokenizer; fidelity is measured on text")
    groups = passages_of(settings, model.tokenizer)
    with opened(output, settings.configuration(), overwrite=overwrite, resume=resume) as journal:
        kind = (LINES if quiet else BAR) if progress else NONE
        total, work = sum(map(len, groups)), sum(map(_work, groups))
        shorter = _SHORTER if foretell else ""
        with Progress(total, kind, sys.stderr, work=work, shorter=shorter) as shown:
            measured = sum(_group(model, settings, group, journal, shown) for group in groups)
        records = journal.rows
        wanted = [record for group in groups for record in _of(settings, group, records)]
        rows = rows_of(wanted, _untouched(model.shape, settings, wanted))
        refused = refusals(wanted)
        if not rows:
            larger = "; give larger --ratios" if settings.columns[0].ratio is not None else ""
            raise UserError(f"no method can be measured: {next(iter(refused.values()))}{larger}")
        write_json(
            output / SUMMARY,
            {
                "model": settings.model,
                "configuration": settings.configuration(),
                "rows": [row.to_dict() for row in rows],
                "refused": refused,
            },
        )
        write.write(output, page.document(settings, rows, refused), [])
    return Outcome(rows, refused, measured)


def _untouched(
    shape: ModelShape, settings: Settings, records: Sequence[FidelityRecord]
) -> set[Key]:
    """The keys of records in which nothing was compressed."""
    columns = {column.key: column for column in settings.columns}
    whole = [r for r in records if r.refused is None and r.kept_share >= 1.0]
    return {
        record.key
        for record in whole
        if keeps_everything(
            columns[record.column].for_prompt(record.context_tokens, shape),
            record.context_tokens,
            shape,
        )
    }


def _group(
    model: CateKVModel,
    settings: Settings,
    passages: Sequence[Passage],
    journal: Journal[FidelityRecord],
    shown: Progress,
) -> int:
    """Measure what a group lacks; a batch as a whole, so that its rounding does not depend on what
    was measured before."""
    records = journal.rows
    lacking = [
        column
        for column in settings.columns
        if any(_lacks(records, passage, column) for passage in passages)
    ]
    measured = 0
    if lacking:
        for found in measure(model, settings, passages, lacking):
            journal.append(*found)
            measured += len(found)
    done = len(passages)
    shown.advance(passages[0].source, done, done if measured else 0, _work(passages))
    return measured


def _work(passages: Sequence[Passage]) -> int:
    """What a group costs beside others: the tokens of its contexts."""
    return sum(len(passage.context_ids) for passage in passages)


def _lacks(records: Records, passage: Passage, column: Column) -> bool:
    """Whether a measurement is missing; what was refused is tried again."""
    record = records.get((passage.digest, column.key))
    return record is None or record.refused is not None


def _of(settings: Settings, passages: Sequence[Passage], records: Records) -> list[FidelityRecord]:
    """The group's records in the order of the columns, under the names of this run."""
    return [
        replace(record, **named(passage, column))
        for column in settings.columns
        for passage in passages
        if (record := records.get((passage.digest, column.key))) is not None
    ]
