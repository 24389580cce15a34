"""What a task is: how its samples are made and scored, and what a builder is asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.tasks.core.prompt import PromptFormat
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.tasks.core.wording import Wording


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        name: full name, e.g. ``"longbench/qasper"``.
        options: frozen dataclass whose values are the defaults of the task's options.
        max_new_tokens: tokens allowed for an answer.
        metric: short name of what the score ``official`` is.
        generate: makes the samples of a request.
        score: rates an answer; every score in [0, 1], ``official`` and ``strict`` always there.
        natural: samples come from rows that have lengths of their own. The requested length is
            then a limit (0: none) and prompts above it are cut by the task's rule, which
            ``metadata["cut_tokens"]`` of the sample records.
        small: the closed vocabulary of the embedded model can express it.
    """

    name: str
    options: Any
    max_new_tokens: int
    metric: str
    generate: Callable[[BuildRequest], Iterator[Sample]]
    score: Callable[[str, Sample], dict[str, float]]
    natural: bool = False
    small: bool = True

    def option_names(self) -> list[str]:
        """Names of the task's options."""
        return [item.name for item in dataclasses.fields(self.options)]

    def configured(self, options: dict[str, Any]) -> Any:
        """The task's options with some replaced.

        Raises:
            UserError: an option that the task does not have (the valid ones are listed), or a value
                of another kind.
        """
        valid = self.option_names()
        unknown = sorted(set(options) - set(valid))
        if unknown:
            raise UserError(
                f"task {self.name} has no option {', '.join(map(repr, unknown))}; "
                f"valid options: {', '.join(valid)}"
            )
        kinds = {item.name: str(item.type) for item in dataclasses.fields(self.options)}
        fitting = {name: _of_kind(kinds[name], name, value) for name, value in options.items()}
        try:
            return dataclasses.replace(self.options, **fitting)
        except TypeError as error:
            raise UserError(
                f"task {self.name}: an option has a value of another kind ({error}); given: "
                + ", ".join(f"{name}={value!r}" for name, value in options.items())
            ) from None


#: what an option annotated like this may be, and how a message says so
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str, os.PathLike), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}


def _of_kind(annotation: str, name: str, value: Any) -> Any:
    """The value of an option, checked against its annotation if that is a plain one.

    Texts may be given as numbers, which is what a command line makes of ``answer=4711``.
    """
    kind, _, other = annotation.partition(" | ")
    if kind not in _KINDS or (value is None and other == "None"):
        return value
    wanted, words = _KINDS[kind]
    if kind == "str" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{name}={value!r}; use {words}")
    return value


def at_least_one(options: Any, *names: str) -> None:
    """Raise ``UserError`` unless all these options are 1 or more; None leaves one open."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}; it must be at least 1")


@dataclass(frozen=True)
class BuildRequest:
    """Samples ``first`` to ``first + count - 1`` of a task, for one tokenizer.

    Attributes:
        options: of the task, completed with its defaults.
        given: the options as they were given, for the record.
        length: tokens of prompt and answer together; a limit where the task is natural.
        stream: samples of different streams never share their random draws.
        format: how the tokenizer wraps a user turn.
        chat_template: name by which ``format`` was asked for (:func:`template_name`).
        max_answer_tokens: overrides the task's and the wording's allowance.
    """

    task: Task
    options: Any
    given: dict[str, Any]
    tokenizer: Any
    length: int
    count: int
    first: int
    seed: int
    stream: str
    wording: Wording
    chat_template: str
    max_answer_tokens: int | None
    format: PromptFormat = field(repr=False)
    tokenizer_hash: str = ""

    def random(self, index: int, purpose: str) -> Random:
        """A generator for one purpose of one sample."""
        parts = (self.stream, self.seed, self.task.name, self.length, index, purpose)
        return generator(*parts)

    @property
    def answer_tokens(self) -> int:
        """New tokens to leave room for."""
        return self.max_answer_tokens or answer_tokens(self.task, self.wording)

    def shared(self) -> dict[str, Any]:
        """Metadata that every sample of the request carries."""
        return {
            "seed": self.seed,
            "stream": self.stream,
            "options": dict(self.given),
            "tokenizer": getattr(self.tokenizer, "name_or_path", ""),
            "tokenizer_hash": self.tokenizer_hash,
            "chat_template": self.chat_template,
        }


def answer_tokens(task: Task, wording: Wording | None = None) -> int:
    """New tokens allowed for a task's answers; a wording may need another allowance."""
    allowances = wording.max_new_tokens if wording else {}
    return allowances.get(task.name.removeprefix("ruler/"), task.max_new_tokens)


def no_files(remark: str) -> Callable[..., list[Sample]]:
    """The ``read`` of a family whose tasks are always built: no file of others holds samples of it.

    ``remark`` is what somebody is told who wants to read such a file.
    """

    def read(path: Path, name: str | None = None) -> list[Sample]:
        raise UserError(f"{path} holds no samples that were written here; {remark}")

    return read


ALWAYS_BUILT = no_files("there is no official sample file, the task is always built")


def recognises_nothing(row: dict[str, Any], path: Path) -> str | None:
    """The ``recognise`` of a family without files of its own."""
    return None


@dataclass(frozen=True)
class Family:
    """Tasks that are published together.

    Attributes:
        name: first part of its tasks' names.
        read: samples of an official file (path, task name or None, options of the reader). Raises
            ``UserError`` naming file and line of what it cannot use.
        recognise: the task's full name if the first row of a file is laid out as this family's
            files are; None leaves the file to other families.
        rank: place among the families in lists, lowest first, then by name; the last one is the
            first to be asked whether it recognises a file.
    """

    name: str
    tasks: tuple[Task, ...]
    read: Callable[..., list[Sample]] = ALWAYS_BUILT
    recognise: Callable[[dict[str, Any], Path], str | None] = recognises_nothing
    rank: int = 100
