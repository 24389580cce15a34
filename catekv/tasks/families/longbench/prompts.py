"""The prompt of one LongBench task, in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catekv.tasks.core.parts import Parts
from catekv.tasks.families.longbench import mini, prompt_files, wording
from catekv.tasks.families.longbench.prompt_text import PromptText
from catekv.tasks.families.longbench.rows import LongRow, parse
from catekv.tasks.families.longbench.samples import Draft
from catekv.tasks.families.longbench.table import TaskFacts
from catekv.tasks.metrics.longbench_tables import bucket


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
