"""LongBench v1 and -E: rows of files or of the generator, as samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import fitted
from catekv.tasks.families.longbench import mini, prompt_files, wording
from catekv.tasks.families.longbench.built_in import plan
from catekv.tasks.families.longbench.built_in.base import Draws
from catekv.tasks.families.longbench.built_in.small import small_plan
from catekv.tasks.families.longbench.options import LongBenchOptions
from catekv.tasks.families.longbench.prompt_text import PromptText
from catekv.tasks.families.longbench.rows import LongRow, parse
from catekv.tasks.families.longbench.samples import Draft, limited, uncounted, wanted
from catekv.tasks.families.longbench.table import EVEN_PREFIX, TaskFacts, facts
from catekv.tasks.metrics.longbench_tables import bucket
from catekv.tasks.rows.sources import BUILT_IN, Hub, file_rows, load_rows
from catekv.tasks.small.parts import is_small

HOW_TO_GET = (
    "download data.zip of the LongBench data set (huggingface.co/datasets/THUDM/LongBench), unpack "
    "it"
)


@dataclass(frozen=True)
class Prompts:
    """What turns rows of one task into drafts.

    ``template`` is a format string of the user's file, None our wording; ``even`` for -E.
    """

    facts: TaskFacts
    even: bool
    template: str | None
    new_tokens: int
    backend: str

    def draft(self, position: int, row: Mapping[str, Any]) -> Draft:
        """A row of a file; ready-made prompts are taken as they are."""
        if mini.is_mini(row):
            return self._finished(mini.parse(row, self.facts, self.template))
        return self.own(parse(row, self.facts, position, needs_length=self.even))

    def own(self, row: LongRow) -> Draft:
        """A row in the template or in our words."""
        if self.template is None:
            text = wording.wrap(self.facts.name, row.context, row.input)
        else:
            text = prompt_files.fill(self.template, row.fields)
        name = wording.NAME if self.template is None else prompt_files.NAME
        notes = self.notes(row.identifier, row.length)
        return Draft(self._parts(text, row.answers, name, row.all_classes, notes))

    def notes(self, identifier: str, words: int | None) -> dict[str, Any]:
        """Metadata of a row."""
        found: dict[str, Any] = {"id": identifier, "language": self.facts.language}
        if words is not None:
            found["length"] = words
            if self.even:
                found["bucket"] = bucket(words)
        return found

    def _finished(self, row: mini.MiniRow) -> Draft:
        boundary = len(row.prompt) if row.boundary is None else row.boundary
        text = PromptText(row.prompt[:boundary], row.prompt[boundary:])
        notes = {"language": self.facts.language}
        parts = self._parts(text, row.answers, prompt_files.NAME, row.all_classes, notes)
        return Draft(parts, row.boundary is not None)

    def _parts(
        self,
        text: PromptText,
        answers: tuple[str, ...],
        name: str,
        classes: tuple[str, ...],
        notes: dict[str, Any],
    ) -> Parts:
        scoring: dict[str, Any] = {}
        if self.facts.metric == "classification":
            scoring["all_classes"] = list(classes)
        if self.facts.metric == "edit_similarity":
            scoring["backend"] = self.backend
        return Parts(
            context=text.context,
            question=text.question,
            answer_prefix=text.answer_prefix,
            outputs=answers,
            max_new_tokens=self.new_tokens,
            wording=name,
            scoring=scoring,
            stop=self.facts.stop,
            metadata=notes,
            without_template=not self.facts.chat,
            shared_context=True,
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
