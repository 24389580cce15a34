"""From rows to samples: prompt, truncation, and what is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts, counted, prompt_format_of, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.families.longbench.cutting import shorten
from catekv.tasks.families.longbench.options import CutOptions
from catekv.tasks.families.longbench.prompt_text import PromptText


@dataclass(frozen=True)
class Draft:
    """A prompt whose length nobody looked at yet.

    ``boundary`` is False for ready-made prompts whose context end is unknown.
    """

    parts: Parts
    boundary: bool = True

    @property
    def text(self) -> PromptText:
        return PromptText(self.parts.context, self.parts.question, self.parts.answer_prefix)


def uncounted(task: str, metric: str, index: int, draft: Draft, data: str) -> Sample:
    """A sample read from a file: nothing is cut, and no tokenizer counted it."""
    parts = draft.parts
    if not draft.boundary:
        parts = replace(parts, metadata={**parts.metadata, "query_aware_only": True})
    return unfitted(task, metric, index, replace(parts, metadata={**parts.metadata, "data": data}))


def limited(request: BuildRequest, index: int, draft: Draft, data: str, rule: str) -> Sample:
    """A sample within the request's length, cut by LongBench's rule where it is longer.

    Raises:
        UserError: the length leaves no room beside the answer.
    """
    options: CutOptions = request.options
    parts = draft.parts
    answer = request.max_answer_tokens or parts.max_new_tokens
    limit = options.max_prompt_tokens
    if request.length:
        room = request.length - answer
        if room < 2:
            raise UserError(
                f"{request.task.name} lets {answer} tokens answer, a length of {request.length} "
                "leaves no prompt; raise the length or lower max_answer_tokens"
            )
        limit = room if limit is None else min(limit, room)
    wrapped = prompt_format_of(request, parts)
    official = options.truncation == "official"
    try:
        short = shorten(wrapped, draft.text, limit, rule, official=official, literal=parts.literal)
    except UserError as error:
        row = parts.metadata.get("id", index)
        raise UserError(f"{request.task.name}, row {row}: {error}") from None
    notes: dict[str, Any] = {"data": data, "cut_tokens": short.removed}
    if short.removed:
        notes["cut"] = f"middle-{rule}" + ("-official" if official else "")
    if not (draft.boundary and short.boundary):
        notes["query_aware_only"] = True
    context, question, prefix = short.text
    cut = replace(parts, context=context, question=question, answer_prefix=prefix)
    return counted(request, index, cut, short.tokens, answer, **notes)


def wanted(request: BuildRequest, drafts: Iterable[Draft]) -> Iterator[tuple[int, Draft]]:
    """The drafts of the indices that are asked for, fewer where the rows end."""
    return islice(enumerate(drafts), request.first, request.first + request.count)
