"""RULER files: official JSONL of 2024 and 2026, and rows as kvpress publishes them.

Official files hold one finished ``input``; where its context ends is found by rules about how RULER
writes its questions. Where no rule applies the sample is marked for query-aware use only: nothing
is guessed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from catekv.tasks.core.prompt import WITHOUT_TEMPLATE, has_template
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.ruler.building import PREFIX
from catekv.tasks.families.ruler.tasks import TASKS
from catekv.tasks.rows.rows import count_field, parse_rows, references_field, shown, text_field

#: wording recorded for samples whose text comes from elsewhere
OFFICIAL = "official-file"
_BY_LENGTH = sorted(TASKS, key=len, reverse=True)


def task_of_path(path: Path) -> str | None:
    """The task whose name is a part of the path, the last part first: ``.../vt/validation.jsonl``,
    ``4096_niah_multikey_3.jsonl``."""
    for part in reversed(path.parts):
        for name in _BY_LENGTH:
            if re.search(rf"(?<![A-Za-z0-9]){name}(?![A-Za-z0-9])", part):
                return name
    return None


def read(
    path: str | os.PathLike[str], task: str | None = None, question_pattern: str | None = None
) -> list[Sample]:
    """Read an official file; see :func:`catekv.tasks.read`.

    Rows that name their task belong to it; ``task``, else the path, says it for the others.

    Raises:
        UserError: unreadable file, torn line, missing field (file and line are named), or a task
            that is not known.
    """
    file = Path(path)
    return parse_rows(
        file, lambda position, row: _sample(row, position, task, file, question_pattern)
    )


def _sample(
    row: dict[str, Any], position: int, task: str | None, file: Path, question_pattern: str | None
) -> Sample:
    parts = "context" in row and "question" in row
    # files of kvpress mix tasks, so there every row says its own
    own = str(row.get("task") or "").removeprefix(PREFIX)
    stated = own if own and (parts or own in TASKS) else task or task_of_path(file)
    name = str(stated).removeprefix(PREFIX)
    if name not in TASKS:
        raise ValueError(f"RULER has no task {shown(name)}; it has {', '.join(TASKS)}")
    known = TASKS[name]
    outputs = references_field(row, "outputs" if "outputs" in row else "answer")
    metadata: dict[str, Any] = {}
    if "index" in row:
        # needle files of RULER repeat theirs (it is a character offset), so the line counts here
        metadata["file_index"] = row["index"]
    if "token_position_answer" in row:
        metadata["token_position_answer"] = row["token_position_answer"]
    prefix = text_field({"answer_prefix": "", **row}, "answer_prefix")
    if parts:
        context, question = text_field(row, "context"), text_field(row, "question")
        if context and question and not (context[-1].isspace() or question[0].isspace()):
            context += "\n"
    else:
        text = text_field(row, "input")
        if has_template(text):
            metadata.update(WITHOUT_TEMPLATE)
        boundary = question_start(text, name, question_pattern)
        if boundary is None:
            context, question = text, ""
            metadata["query_aware_only"] = True
        else:
            context, question = text[:boundary], text[boundary:]
            if not prefix and "chat_template" not in metadata:
                question, prefix = split_answer_prefix(question, name)
    length = count_field(row, "length", 0)
    return Sample(
        task=known.name,
        index=position,
        context=context,
        question=question,
        answer_prefix=prefix,
        outputs=outputs,
        max_new_tokens=count_field(row, "max_new_tokens", known.max_new_tokens, least=1),
        length=length,
        target_length=length,
        metric=known.metric,
        wording=OFFICIAL,
        metadata=metadata,
    )


def question_start(text: str, task: str, pattern: str | None = None) -> int | None:
    """Where the question starts in an official ``input``; None if no rule applies.

    It is what follows the last newline, and for qa the last repetition of the opening instruction.
    ``pattern`` (last match) overrides these rules; with a chat template in the text there is no
    rule without it.
    """
    if pattern is not None:
        try:
            matches = list(re.finditer(pattern, text))
        except re.error as error:
            raise ValueError(
                f"question_pattern {pattern!r} is no regular expression: {error}"
            ) from None
        return matches[-1].start() if matches else None
    if has_template(text):
        return None
    if task.startswith("qa_"):
        opening = text.split("\n", 1)[0].strip()
        place = text.rfind(opening) if opening else 0
    else:
        place = text.rstrip("\n").rfind("\n") + 1
    return place if place > 0 else None


def split_answer_prefix(question: str, task: str) -> tuple[str, str]:
    """Split the end of a 2024 ``input`` into question and answer prefix.

    The prefix starts after the question mark for needles, at the last ``Answer:`` otherwise.
    """
    if task.startswith("niah"):
        place = question.rfind("?") + 1
    else:
        place = question.rfind("Answer:")
        if place > 0 and question[place - 1] == " ":
            place -= 1
    return (question[:place], question[place:]) if place > 0 else (question, "")
