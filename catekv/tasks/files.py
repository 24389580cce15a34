"""RULER files: official JSONL of 2024 and 2026, rows as kvpress publishes them, and our own.

Official files hold one finished ``input``; where its context ends is found by rules about how RULER
writes its questions. Where no rule applies the sample is marked for query-aware use only: nothing
is guessed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.prompt import has_template
from catekv.tasks.registry import PREFIX, TASKS, find
from catekv.tasks.sample import Sample

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
    """Read samples of one task from a JSONL file.

    Args:
        path: the file.
        task: its task; default: what the rows or the path say.
        question_pattern: regular expression whose last match starts the question, for files whose
            prompts already carry a chat template.

    Returns:
        Samples in file order. ``metadata["query_aware_only"]`` is set where the end of the context
        is unknown.

    Raises:
        UserError: unreadable file, torn line, missing field (file and line are named), unknown
            task, or an ``index`` that is not a whole number.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    samples: list[Sample] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file}, line {number}: not a complete JSON object ({error.msg}); the file may be "
                "torn, build or download it again"
            ) from None
        try:
            samples.append(_sample(row, len(samples), task, file, question_pattern))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{file}, line {number}: {reason}") from None
    if not samples:
        raise UserError(f"{file} holds no sample")
    return samples


def _sample(
    row: dict[str, Any] | Any,
    position: int,
    task: str | None,
    file: Path,
    question_pattern: str | None,
) -> Sample:
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object with the fields index, input and outputs")
    name = task or row.get("task") or task_of_path(file)
    if not name:
        raise ValueError(
            "the task is not known; put the file into a folder with the task's name or pass task="
        )
    known = find(str(name))
    outputs = row["outputs"] if "outputs" in row else row["answer"]
    outputs = (outputs,) if isinstance(outputs, str) else tuple(str(text) for text in outputs)
    if not outputs:
        raise ValueError("there is no reference answer in this row")
    metadata: dict[str, Any] = dict(row.get("metadata") or {})
    unique = bool(row.get("unique_index", False))
    if not unique and "index" in row:
        # needle files of RULER repeat theirs (it is a character offset), so the line counts here
        metadata["file_index"] = row["index"]
    if "context" in row and "question" in row:
        context, question = str(row["context"]), str(row["question"])
        if context and question and not (context[-1].isspace() or question[0].isspace()):
            context += "\n"
        prefix = str(row.get("answer_prefix", ""))
    else:
        text, prefix = str(row["input"]), str(row.get("answer_prefix", ""))
        boundary: int | None
        if "context_characters" in row:
            boundary = int(row["context_characters"])
        else:
            if has_template(text):
                metadata["chat_template"] = "base"
            boundary = question_start(text, known.name, question_pattern)
        if boundary is None:
            context, question = text, ""
            metadata["query_aware_only"] = True
        else:
            context, question = text[:boundary], text[boundary:]
            if not prefix and metadata.get("chat_template") != "base":
                question, prefix = split_answer_prefix(question, known.name)
    return Sample(
        task=PREFIX + known.name,
        index=int(row["index"]) if unique else position,
        context=context,
        question=question,
        answer_prefix=prefix,
        outputs=outputs,
        max_new_tokens=int(row.get("max_new_tokens", known.max_new_tokens)),
        length=int(row.get("length", 0)),
        target_length=int(row.get("target_length", row.get("length", 0))),
        metric=known.metric,
        wording=str(row.get("wording", OFFICIAL)),
        depths=tuple(float(depth) for depth in row.get("depths", ())),
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


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row of the official layout of 2026, with the context's end as a field.

    ``input`` is context and question; what is sent is ``input + answer_prefix``.
    """
    return {
        "index": sample.index,
        "input": sample.context + sample.question,
        "outputs": list(sample.outputs),
        "length": sample.length,
        "length_w_model_temp": sample.length,
        "answer_prefix": sample.answer_prefix,
        "unique_index": True,
        "context_characters": len(sample.context),
        "task": sample.task,
        "target_length": sample.target_length,
        "max_new_tokens": sample.max_new_tokens,
        "wording": sample.wording,
        "depths": [round(depth, 6) for depth in sample.depths],
        "metadata": sample.metadata,
    }


def write(path: str | os.PathLike[str], samples: Iterable[Sample]) -> None:
    """Write samples as JSONL; the file appears when it is complete.

    Raises:
        UserError: if two samples share an ``index`` (a resumed run would drop one), or the place
            cannot be written.
    """
    file = Path(path)
    partial = file.with_name(file.name + ".partial")
    seen: set[int] = set()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as stream:
            for sample in samples:
                if sample.index in seen:
                    raise UserError(f"two samples have index {sample.index}; indices must differ")
                seen.add(sample.index)
                stream.write(json.dumps(to_row(sample), ensure_ascii=False) + "\n")
        partial.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error}") from error
    finally:
        if partial.exists():
            partial.unlink()


def sample_path(root: str | os.PathLike[str], family: str, length: int, task: str) -> Path:
    """``root/<family>/<length>/<task>/validation.jsonl``, the layout of the CateKV release."""
    return Path(root) / family / str(length) / find(task).name / "validation.jsonl"
