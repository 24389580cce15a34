"""Sample files: our own rows, which hold every part of a sample, and the official ones.

Our rows follow the official RULER layout of 2026 with further fields, so that RULER's own scripts
read them too. Files of other benchmarks are read by their families.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.files import replacing
from catekv.tasks.core.sample import Sample
from catekv.tasks.registry import families, family_of, find
from catekv.tasks.rows.rows import (
    count_field,
    parse_rows,
    read_rows,
    references_field,
    shown,
    text_field,
)

#: only our own rows say where the context ends
_OWN_MARK = "context_characters"


def read(path: str | os.PathLike[str], task: str | None = None, **options: Any) -> list[Sample]:
    """Read samples from a file: ours, or an official one as it is.

    Args:
        path: the file (or folder, where a benchmark comes as one).
        task: its task; default: what the rows or the path say.
        options: of the family's reader, e.g. ``question_pattern`` for RULER files whose prompts
            already carry a chat template: a regular expression whose last match starts the
            question.

    Returns:
        Samples in file order. ``metadata["query_aware_only"]`` is set where the end of the context
        is unknown.

    Raises:
        UserError: unreadable file, torn line, missing field (file and line are named), unknown
            task or layout.
    """
    file = Path(path)
    first = {} if file.is_dir() else read_rows(file)[0][1]
    if _OWN_MARK in first:
        return parse_rows(file, lambda position, row: _own(row, task))
    if task is not None:
        known = find(task)
        samples = family_of(known).read(file, known.name, **options)
        other = next((sample for sample in samples if sample.task != known.name), None)
        if other is not None:
            raise UserError(
                f"{file}: row {other.index + 1} belongs to {other.task}, not to {known.name}; "
                "leave task= out"
            )
        return samples
    # RULER comes last: its official rows do not say what they are, only their path does
    for family in reversed(families()):
        name = family.recognise(first, file)
        if name is not None:
            return family.read(file, name, **options)
    raise UserError(
        f"{file}: the task is not known; put the file into a folder with the task's name or "
        "pass task="
    )


def _own(row: dict[str, Any], task: str | None) -> Sample:
    name = task or text_field(row, "task")
    try:
        known = find(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    text = text_field(row, "input")
    boundary = count_field(row, _OWN_MARK)
    if boundary > len(text):
        raise ValueError(f"{_OWN_MARK} is {shown(boundary)}, the text has {len(text)} characters")
    # other scores may have blank references: a test row of ZeroSCROLLS has none at all
    searched = known.metric in ("all", "part")
    outputs = references_field(row, "outputs") if searched else map(str, row["outputs"])
    return Sample(
        task=known.name,
        index=count_field(row, "index"),
        context=text[:boundary],
        question=text[boundary:],
        answer_prefix=text_field(row, "answer_prefix"),
        outputs=tuple(outputs),
        max_new_tokens=count_field(row, "max_new_tokens", least=1),
        length=count_field(row, "length"),
        target_length=count_field(row, "target_length"),
        metric=str(row.get("metric", known.metric)),
        wording=text_field(row, "wording"),
        depths=tuple(float(depth) for depth in row["depths"]),
        metadata=dict(row["metadata"]),
        stop=tuple(row.get("stop", ())),
        min_new_tokens=count_field(row, "min_new_tokens", 0),
        scoring=dict(row.get("scoring", {})),
        group=str(row.get("group", "")),
    )


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row of our own.

    ``input`` is context and question; what is sent is ``input + answer_prefix``.
    """
    row: dict[str, Any] = {
        "index": sample.index,
        "input": sample.context + sample.question,
        "outputs": list(sample.outputs),
        "length": sample.length,
        "length_w_model_temp": sample.length,
        "answer_prefix": sample.answer_prefix,
        "unique_index": True,
        _OWN_MARK: len(sample.context),
        "task": sample.task,
        "target_length": sample.target_length,
        "max_new_tokens": sample.max_new_tokens,
        "metric": sample.metric,
        "wording": sample.wording,
        "depths": [round(depth, 6) for depth in sample.depths],
        "metadata": sample.metadata,
    }
    more = {
        "stop": list(sample.stop),
        "min_new_tokens": sample.min_new_tokens,
        "scoring": sample.scoring,
        "group": sample.group,
    }
    return row | {name: value for name, value in more.items() if value}


def write(path: str | os.PathLike[str], samples: Iterable[Sample]) -> None:
    """Write samples as JSONL; the file appears when it is complete.

    Raises:
        UserError: if two samples share an ``index`` (a resumed run would drop one), or the place
            cannot be written.
    """
    seen: set[int] = set()
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for sample in samples:
            if sample.index in seen:
                raise UserError(f"two samples have index {sample.index}; indices must differ")
            seen.add(sample.index)
            stream.write(json.dumps(to_row(sample), ensure_ascii=False) + "\n")


def sample_path(root: str | os.PathLike[str], family: str, length: int, task: str) -> Path:
    """``root/<family>/<length>/<task>/validation.jsonl``, the layout of the CateKV release."""
    short = find(task).name.removeprefix("ruler/")
    return Path(root) / family / str(length) / short / "validation.jsonl"
