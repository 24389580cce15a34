"""Official ZeroSCROLLS rows: a finished prompt, and where its document and its query lie.

``input`` is instruction, document, query and the beginning of the answer. What comes before the
query is the context; of a document that is too long the end is cut off and replaced by the row's
``truncation_seperator`` (sic), while instruction, query and the rest stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import OFFICIAL, Parts, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.metrics import zeroscrolls
from catekv.tasks.rows.named_files import NamedFiles
from catekv.tasks.rows.rows import identity_field, naming, references_field, shown, text_field
from catekv.tasks.rows.sources import file_rows

PREFIX = "zeroscrolls/"
#: new tokens of an answer
NEW_TOKENS = {
    "gov_report": 1024,
    "summ_screen_fd": 512,
    "qmsum": 512,
    "squality": 512,
    "qasper": 128,
    "narrative_qa": 64,
    "musique": 32,
    "quality": 10,
    "space_digest": 36,
    "book_sum_sort": 256,
}
#: rows say where document and query lie
FILES = NamedFiles(
    "ZeroSCROLLS",
    PREFIX,
    tuple(NEW_TOKENS),
    frozenset({"input", "document_start_index", "query_start_index"}),
    folders=True,
)
_SPANS = ("document_start_index", "document_end_index", "query_start_index", "query_end_index")


def metric_name(task: str) -> str:
    """Short name of a task's official score; it says where nobody compared it with the original."""
    rule = zeroscrolls.METRICS[task]
    name = {"rouge": "rouge_geometric", "f1": "qa_f1"}.get(rule, rule)
    return f"{name}_unverified" if task in zeroscrolls.UNVERIFIED else name


def row_parts(task: str, row: dict[str, Any], wording: str = OFFICIAL) -> Parts:
    """The prompt of a row; ``outputs`` is empty for a test row, whose answer is not public.

    Raises:
        KeyError, ValueError: a missing field, spans that do not lie in the prompt one after the
            other, or an answer that the task's rule cannot use.
    """
    text = text_field(row, "input")
    start, end, asked, asked_end = (_index(row[name], name, len(text)) for name in _SPANS)
    if asked == asked_end:  # summaries have no query: the answer begins behind the document
        asked = asked_end = max(end, asked)
    if not start <= end <= asked <= asked_end:
        raise ValueError(
            f"document {start} to {end} and query {asked} to {asked_end} do not follow each other"
        )
    outputs = () if row.get("output") in (None, "", []) else references_field(row, "output")
    try:
        zeroscrolls.score(task, "", outputs)
    except UserError as error:
        raise ValueError(str(error)) from None
    separator = ""
    if row.get("truncation_seperator") is not None:
        separator = text_field(row, "truncation_seperator")
    metadata = {"id": str(identity_field(row, "id"))}
    if task in zeroscrolls.UNVERIFIED:
        metadata["metric_note"] = "not compared with the official code"
    return Parts(
        context=text[:asked],
        question=text[asked:asked_end],
        answer_prefix=text[asked_end:],
        outputs=outputs,
        max_new_tokens=NEW_TOKENS[task],
        wording=wording,
        metadata=metadata,
        uncut=start,
        document_end=end,
        separator=separator,
        shared_context=asked < asked_end,
    )


def _index(value: Any, name: str, length: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= length:
        raise ValueError(f"{name} is {shown(value)}, not a place within the {length} characters")
    return value


def merged(parts: Iterable[Parts]) -> list[Parts]:
    """Rows with one id are one question with several reference answers.

    Raises:
        ValueError: two different prompts have the same id.
    """
    found: dict[str, Parts] = {}
    for one in parts:
        name = one.metadata["id"]
        known = found.setdefault(name, one)
        if known is one:
            continue
        if replace(one, outputs=()) != replace(known, outputs=()):
            raise ValueError(f"two different rows have the id {name!r}")
        found[name] = replace(known, outputs=tuple(dict.fromkeys(known.outputs + one.outputs)))
    return list(found.values())


def read(path: Path | str, task: str | None = None) -> list[Sample]:
    """Samples of an official file, in file order; test rows have no ``outputs``."""
    file = Path(path)
    name = FILES.task(file, task)
    rows = file_rows(file)
    with naming(file, "all rows"):
        parts = merged(rows.parsed(lambda position, row: row_parts(name, row)))
    metric = metric_name(name)
    return [unfitted(PREFIX + name, metric, index, one) for index, one in enumerate(parts)]
