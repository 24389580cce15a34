"""The official prompt files, when the user has them.

``dataset2prompt.json`` holds a format string per task with ``{context}`` and ``{input}``,
``dataset2maxlen.json`` the new tokens per task. LongBench v2 has text files with the markers
``$DOC$``, ``$Q$``, ``$C_A$`` to ``$C_D$`` and, for the second step of a chain of thought,
``$COT$``. Everything is substituted in one pass, so that a document may hold braces or a marker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from catekv.errors import UserError
from catekv.files import read_text
from catekv.tasks.families.longbench.prompt_text import PromptText

#: prompt set that is recorded with samples
NAME = "official-file"
_MARKER = re.compile(r"\$(?:DOC|Q|C_[A-D]|COT)\$")


def _entry(path: str, task: str, what: str) -> Any:
    try:
        table = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(table, dict) or task not in table:
        raise UserError(f"{path} holds no {what} for {task}; expected an object with task names")
    return table[task]


def format_string(path: str, task: str) -> str:
    """The format string of a task.

    Raises:
        UserError: unreadable file, task missing, or a text without ``{context}``.
    """
    template = _entry(path, task, "prompt")
    if not isinstance(template, str):
        raise UserError(f"{path}: the prompt of {task} is not a text")
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"{path}: the prompt of {task} is no format string: {error}") from None
    if fields.count("context") != 1:
        raise UserError(f"{path}: the prompt of {task} needs the field {{context}} exactly once")
    return template


def new_tokens(path: str, task: str) -> int:
    """New tokens of a task by ``dataset2maxlen.json``; ``UserError`` if it holds none."""
    value = _entry(path, task, "number of new tokens")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
            f"{path}: the new tokens of {task} are {value!r}, expected a number above 0"
        )
    return value


def fill(template: str, row: Mapping[str, Any]) -> PromptText:
    """A filled format string; its context part ends with the context.

    Raises:
        ValueError: the string has a field that the row lacks.
    """
    pieces: list[str] = []
    boundary = 0
    for literal, name, _, _ in Formatter().parse(template):
        pieces.append(literal)
        if name is None:
            continue
        if name not in row:
            raise ValueError(f"the prompt asks for the field {{{name}}}, which the row lacks")
        pieces.append(str(row[name]))
        if name == "context":
            boundary = len(pieces)
    return PromptText("".join(pieces[:boundary]), "".join(pieces[boundary:]))


def find_context(template: str, prompt: str) -> int | None:
    """Where the context of a finished prompt ends; None if that is not certain.

    The prompt must start and end like the format string, and what stands between context and input
    there must occur exactly once.
    """
    literals, names = [""], []
    for literal, name, _, _ in Formatter().parse(template):
        literals[-1] += literal
        if name is not None:
            names.append(name)
            literals.append("")
    if names not in (["context"], ["context", "input"]):
        return None
    start, middle, end = literals[0], literals[1], literals[-1]
    if not prompt.startswith(start):
        return None
    if names == ["context"]:
        place = len(prompt) - len(middle)
        return place if prompt.endswith(middle) and place >= len(start) else None
    if not middle or not prompt.endswith(end) or prompt.count(middle, len(start)) != 1:
        return None
    return prompt.index(middle, len(start))


def marked_text(path: str) -> str:
    """A prompt file of LongBench v2.

    Raises:
        UserError: unreadable, or without ``$DOC$`` (once), or a second step (``$COT$``).
    """
    text = read_text(path)
    markers = _MARKER.findall(text)
    if "$COT$" in markers:
        raise UserError(
            f"{path} is the second step of a chain of thought ($COT$); give the file of the first"
        )
    if markers.count("$DOC$") != 1:
        raise UserError(f"{path} needs the marker $DOC$ exactly once")
    return text


def fill_markers(template: str, values: Mapping[str, str]) -> PromptText:
    """A filled prompt file of LongBench v2; ``values`` by marker without the dollar signs."""
    pieces: list[str] = []
    boundary = last = 0
    for found in _MARKER.finditer(template):
        name = found.group()[1:-1]
        pieces += [template[last : found.start()], values[name]]
        last = found.end()
        if name == "DOC":
            boundary = len(pieces)
    pieces.append(template[last:])
    return PromptText("".join(pieces[:boundary]), "".join(pieces[boundary:]))
