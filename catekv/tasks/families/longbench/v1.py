"""LongBench v1 and -E: rows of files or of the generator, as samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import fitted
from catekv.tasks.families.longbench import prompt_files
from catekv.tasks.families.longbench.built_in import plan
from catekv.tasks.families.longbench.built_in.base import Draws
from catekv.tasks.families.longbench.built_in.small import small_plan
from catekv.tasks.families.longbench.options import LongBenchOptions
from catekv.tasks.families.longbench.prompts import Prompts
from catekv.tasks.families.longbench.samples import limited, uncounted, wanted
from catekv.tasks.families.longbench.table import EVEN_PREFIX, facts
from catekv.tasks.rows.sources import BUILT_IN, Hub, file_rows, load_rows
from catekv.tasks.small.parts import is_small

HOW_TO_GET = (
    "download data.zip of the LongBench data set (huggingface.co/datasets/THUDM/LongBench), unpack "
    "it"
)


def prompts_of(task: str, options: LongBenchOptions) -> Prompts:
    """The prompts of a task by its options; ``UserError`` for prompt files that do not serve."""
    known = facts(task)
    template, lengths = options.prompts, options.max_lengths
    return Prompts(
        facts=known,
        even=task.startswith(EVEN_PREFIX),
        template=prompt_files.format_string(template, known.name) if template else None,
        new_tokens=prompt_files.new_tokens(lengths, known.name) if lengths else known.new_tokens,
        backend=options.backend,
    )


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples of v1 and -E; see :class:`catekv.tasks.core.task.Task`."""
    prompts = prompts_of(request.task.name, request.options)
    generated = request.options.source == BUILT_IN
    made = _generated(request, prompts) if generated else _from_rows(request, prompts)
    for sample in made:
        yield replace(sample, min_new_tokens=prompts.facts.min_new_tokens)


def _from_rows(request: BuildRequest, prompts: Prompts) -> Iterator[Sample]:
    name = prompts.facts.name + ("_e" if prompts.even else "")
    # the archive unpacks into data/ and holds the files of -E too
    files = [f"{name}.jsonl", f"data/{name}.jsonl"]
    if prompts.even:
        files += [f"longbench/{file}" for file in files]
    else:
        files.append(f"MiniLongBench_{name}.json")
    rows = load_rows(
        request.task.name,
        request.options,
        files=files,
        hub=Hub("THUDM/LongBench", name),
        built_in=lambda: (),
        how_to_get=HOW_TO_GET,
    )
    for index, draft in wanted(request, rows.parsed(prompts.draft)):
        yield limited(request, index, draft, rows.data, "v1")


def _generated(request: BuildRequest, prompts: Prompts) -> Iterator[Sample]:
    small = is_small(request.wording)
    for index in range(request.first, request.first + request.count):
        draws = Draws(partial(request.random, index))
        drawn = small_plan(prompts, draws) if small else plan(prompts, draws).fitting()
        yield fitted(request, index, drawn)


def read(path: Path, task: str, **options: Any) -> list[Sample]:
    """Samples of a file: JSONL of v1 and -E, or MiniLongBench with its prompts as given.

    Args:
        options: ``prompts``, ``max_lengths`` and ``backend`` of :class:`LongBenchOptions`.

    Raises:
        UserError: unreadable file, unknown task, missing or wrong field (file and line are named).
    """
    settings = LongBenchOptions(path=str(path), **options)
    prompts = prompts_of(task, settings)
    rows = file_rows(path)
    return [
        replace(
            uncounted(task, prompts.facts.metric, index, draft, rows.data),
            min_new_tokens=prompts.facts.min_new_tokens,
        )
        for index, draft in enumerate(rows.parsed(prompts.draft))
    ]
