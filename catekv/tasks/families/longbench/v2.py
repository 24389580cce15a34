"""LongBench v2: four-choice questions over long texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import fitted
from catekv.tasks.families.longbench import choice_wording, prompt_files, wording
from catekv.tasks.families.longbench.built_in.base import Draws
from catekv.tasks.families.longbench.built_in.choices import choice_plan, small_choice_plan
from catekv.tasks.families.longbench.choice_rows import (
    LETTERS,
    ChoiceRow,
    answer_text,
    is_pair_folder,
    parse,
    read_pairs,
)
from catekv.tasks.families.longbench.options import ChoiceOptions
from catekv.tasks.families.longbench.samples import Draft, limited, uncounted, wanted
from catekv.tasks.families.longbench.table import SECOND
from catekv.tasks.rows.sources import BUILT_IN, Hub, Rows, file_rows, find_file, load_rows
from catekv.tasks.small.parts import is_small

#: new tokens of an answer, and of the reasoning before it
ANSWER, REASONING = 128, 1024
FILES = ("data.json", "longbench_v2.json", "longbench_v2.jsonl")
HOW_TO_GET = (
    "download data.json of the LongBench v2 data set (huggingface.co/datasets/THUDM/LongBench-v2)"
)


def draft(row: ChoiceRow, options: ChoiceOptions, template: str | None) -> Draft:
    """A row as a prompt in ``template`` or, if that is None, in our words."""
    if template is None:
        text = choice_wording.wrap(row, options.chain_of_thought)
    else:
        choices = {f"C_{letter}": row.choices[at].strip() for at, letter in enumerate(LETTERS)}
        values = {"DOC": row.context.strip(), "Q": row.question.strip(), **choices}
        text = prompt_files.fill_markers(template, values)
    parts = Parts(
        context=text.context,
        question=text.question,
        answer_prefix=text.answer_prefix,
        outputs=(answer_text(row.answer),),
        max_new_tokens=ANSWER + (REASONING if options.chain_of_thought else 0),
        wording=wording.NAME if template is None else prompt_files.NAME,
        scoring={"answer": row.answer},
        metadata={
            "id": row.identifier,
            "difficulty": row.difficulty,
            "length": row.length,
            "domain": row.domain,
            "sub_domain": row.sub_domain,
        },
        shared_context=True,
    )
    return Draft(parts)


def chosen(rows: Iterable[ChoiceRow], options: ChoiceOptions) -> Iterator[tuple[int, ChoiceRow]]:
    """The rows that the filters leave, with their numbers."""
    domain = (options.domain or "").lower()
    for number, row in enumerate(rows):
        if (
            options.difficulty in (None, row.difficulty)
            and options.length_group in (None, row.length)
            and (domain in row.domain.lower() or domain in row.sub_domain.lower())
        ):
            yield number, row


def _template(options: ChoiceOptions) -> str | None:
    return prompt_files.marked_text(options.prompts) if options.prompts else None


def _folder_rows(folder: Path) -> Rows:
    rows = read_pairs(folder)
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    return Rows(rows, f"file:{folder.name}:{digest}", str(folder), [row["_id"] for row in rows])


def _rows(options: ChoiceOptions) -> Rows:
    if options.path is not None and is_pair_folder(Path(options.path).expanduser()):
        return _folder_rows(Path(options.path).expanduser())
    return load_rows(
        SECOND,
        options,
        files=FILES,
        hub=Hub("THUDM/LongBench-v2", None, "train"),
        built_in=lambda: (),
        how_to_get=HOW_TO_GET,
    )


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples of v2; those that the filters leave are numbered from 0."""
    options: ChoiceOptions = request.options
    template = _template(options)
    if options.source == BUILT_IN:
        yield from _generated(request, template)
        return
    rows = _rows(options)
    left = [row for _, row in chosen(rows.parsed(parse), options)]
    if not left:
        raise UserError(f"{SECOND}: no question is left by difficulty=, length_group= and domain=")
    drafts = (draft(row, options, template) for row in left)
    for index, one in wanted(request, drafts):
        sample = limited(request, index, one, rows.data, "v2")
        yield _marked(sample)


def _marked(sample: Sample) -> Sample:
    """With ``truncated`` in its metadata: a table needs the share of cut texts beside scores."""
    cut = bool(sample.metadata.get("cut_tokens"))
    return replace(sample, metadata={**sample.metadata, "truncated": cut})


def _generated(request: BuildRequest, template: str | None) -> Iterator[Sample]:
    options: ChoiceOptions = request.options
    filters = {
        name: getattr(options, name)
        for name in ("difficulty", "length_group", "domain")
        if getattr(options, name) is not None
    }
    if filters:
        raise UserError(
            f"{SECOND}: generated rows are all alike, {', '.join(filters)} cannot choose among "
            "them; leave it out or give path=FILE"
        )
    small = is_small(request.wording)
    for index in range(request.first, request.first + request.count):
        draws = Draws(partial(request.random, index))
        plan = small_choice_plan(draws) if small else choice_plan(draws, _made(options, template))
        yield _marked(fitted(request, index, plan))


def _made(options: ChoiceOptions, template: str | None) -> Callable[[ChoiceRow], Parts]:
    return lambda row: draft(row, options, template).parts


def read(path: Path, task: str, **given: Any) -> list[Sample]:
    """Samples of ``data.json``, JSONL rows or a folder of Markdown pairs.

    Args:
        given: ``prompts``, ``chain_of_thought`` and the filters of :class:`ChoiceOptions`.

    Raises:
        UserError: unreadable file, missing or wrong field (file and line are named).
    """
    options = ChoiceOptions(path=str(path), **given)
    template = _template(options)
    if path.is_dir() and is_pair_folder(path):
        rows = _folder_rows(path)
    else:
        rows = file_rows(find_file(SECOND, path, FILES))
    return [
        uncounted(task, "accuracy", index, draft(row, options, template), rows.data)
        for index, (_, row) in enumerate(chosen(rows.parsed(parse), options))
    ]


def recognised(row: Mapping[str, Any], path: Path) -> bool:
    """Whether a first row, or a folder, is LongBench v2."""
    return is_pair_folder(path) or {"choice_A", "choice_D", "question", "context"} <= set(row)
