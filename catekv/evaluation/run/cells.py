"""The samples of a run, task by task and length by length, with every mistake found beforehand."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from catekv import tasks
from catekv.errors import UserError
from catekv.evaluation.columns.settings import RunSettings, stable_hash
from catekv.evaluation.run.file_checks import check_file, tokenizer_warning
from catekv.evaluation.run.overlap import refuse_overlap
from catekv.models.compat import context_window
from catekv.tasks.core.prompt import encode
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.tokenizers import tokenizer_hash
from catekv.tasks.registry import find

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: options of :func:`catekv.tasks.build` that every task has
_BUILD_OPTIONS = frozenset({"wording", "words_path"})
_NO_BOUNDARY = (
    "its context and question cannot be told apart (unmarked, or cut into the question), so the "
    "question cannot be asked after compression; give --question aware"
)
#: built samples that are kept for the next question mode and the next method
_REMEMBERED = 16


@dataclass(frozen=True)
class Cell:
    """The samples of one task at one length.

    Attributes:
        length: target in tokens; 0 for a file and where nothing limits a natural task.
        count: samples, at positions 0 to ``count - 1``; a position is the index of its records.
        first: the sample at position 0, built early to find mistakes.
        build: makes the sample at a position.
        sizes: tokens of the prompts with their answers, where all samples are at hand; None where
            they are built one by one, all of nearly the same length.
        groups: with ``sizes``, what samples of one shared context have in common, "" elsewhere.
        skips: why samples are left out, by position.
        aware_only: positions of samples whose question cannot be told from their context: left out
            where the question is asked after compression.
        warnings: what a user must know about the samples, one sentence each.
    """

    task: str
    length: int
    count: int
    first: Sample
    build: Callable[[int], Sample]
    sizes: tuple[int, ...] | None = None
    groups: tuple[str, ...] = ()
    skips: Mapping[int, str] = field(default_factory=dict)
    aware_only: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()

    def sample(self, position: int) -> Sample:
        return self.first if position == 0 else self.build(position)

    def left_out(self, question: str) -> dict[int, str]:
        """Why samples are not measured in a question mode, by position."""
        if question != "agnostic":
            return dict(self.skips)
        return {**dict.fromkeys(self.aware_only, _NO_BOUNDARY), **self.skips}


def is_file(task: str) -> bool:
    """Whether a task is given as the path of a JSONL file."""
    return task.endswith((".jsonl", ".json"))


def build_cells(model: CateKVModel, settings: RunSettings) -> list[Cell]:
    """All cells of a run, with their first samples.

    Raises:
        UserError: unknown task or option, data that are missing or unreadable, a length that does
            not fit a task or the model, or a file whose samples do not fit the model, the question
            mode or the head masks.
    """
    if model.tokenizer is None:
        raise UserError(
            f"{settings.model} holds no tokenizer, tasks are text; put the tokenizer's files into "
            "the folder"
        )
    _check_lengths(model, settings)
    _check_task_options(settings)
    cells: list[Cell] = []
    for task in settings.tasks:
        if is_file(task):
            cells.append(_file_cell(task, model, settings))
        elif find(task).natural:
            cells += [_natural_cell(task, n, model, settings) for n in settings.lengths]
        else:
            cells += [_built_cell(task, n, model, settings) for n in settings.lengths]
    names = [(cell.task, cell.length) for cell in cells]
    for task, length in names:
        if names.count((task, length)) > 1:
            raise UserError(
                f"{task} is asked for twice ({length or 'in two files'}); give it "
                "once, and further files a run of their own"
            )
    return cells


def _check_lengths(model: CateKVModel, settings: RunSettings) -> None:
    window = context_window(model.config)
    built = [task for task in settings.tasks if not is_file(task)]
    for length in settings.lengths if built else ():
        if window is not None and length > window:
            raise UserError(
                f"length {length} exceeds the model's window of {window} tokens; choose a length "
                "up to that or another model"
            )
        fitted = [task for task in built if not find(task).natural]
        if not length and fitted:
            raise UserError(
                f"length 0 means whole rows, but {fitted[0]} is built to a length; give tokens, "
                "e.g. --lengths 4096"
            )


def _task_options(task: str, settings: RunSettings) -> dict[str, Any]:
    """Those of the run's task options that a task has: a file of essays concerns essay tasks."""
    known = {*find(task).option_names(), *_BUILD_OPTIONS}
    return {name: value for name, value in settings.task_options.items() if name in known}


def _check_task_options(settings: RunSettings) -> None:
    built = [task for task in settings.tasks if not is_file(task)]
    used = {name for task in built for name in _task_options(task, settings)}
    unused = sorted(set(settings.task_options) - used)
    if unused:
        names = [name for task in built for name in find(task).option_names()]
        raise UserError(
            f"no task of this run has an option {unused[0]!r}; valid options: "
            f"{', '.join(sorted({*names, *_BUILD_OPTIONS}))}"
        )


def _build(
    task: str, length: int, model: CateKVModel, settings: RunSettings, first: int, count: int
) -> list[Sample]:
    return tasks.build(
        task,
        model.tokenizer,
        length,
        count,
        seed=settings.seed,
        first=first,
        chat_template=settings.chat_template,
        max_answer_tokens=settings.max_new_tokens,
        **_task_options(task, settings),
    )


def _built_cell(task: str, length: int, model: CateKVModel, settings: RunSettings) -> Cell:
    """Samples that are made to a length, each when it is needed."""

    @functools.lru_cache(maxsize=max(_REMEMBERED, 2 * settings.batch_size))
    def build(index: int) -> Sample:
        (sample,) = _build(task, length, model, settings, index, 1)
        return sample

    first = build(0)
    refuse_overlap(settings.reference_contexts, [first], "this run")
    if first.group:
        samples = _build(task, length, model, settings, 0, settings.samples)
        return _held_cell(first.task, length, samples, settings)
    return Cell(first.task, length, settings.samples, first, build)


def _natural_cell(task: str, length: int, model: CateKVModel, settings: RunSettings) -> Cell:
    """Samples of rows with lengths of their own: ``length`` is a limit, 0 means none."""
    samples = _build(task, length, model, settings, 0, settings.samples)
    if not samples:
        raise UserError(f"{task} holds no rows; check the file it is read from")
    refuse_overlap(settings.reference_contexts, samples, "this run")
    cell = _held_cell(samples[0].task, length, samples, settings)
    return dataclasses.replace(
        cell, skips=_too_long(cell, model), warnings=_cut_warning(cell, samples)
    )


def _held_cell(
    task: str,
    length: int,
    samples: Sequence[Sample],
    settings: RunSettings,
    prompt_tokens: Sequence[int] | None = None,
) -> Cell:
    if prompt_tokens is None:
        prompt_tokens = [sample.length - sample.max_new_tokens for sample in samples]
    answers = [settings.max_new_tokens or sample.max_new_tokens for sample in samples]
    return Cell(
        task,
        length,
        len(samples),
        samples[0],
        lambda position: samples[position],
        tuple(map(sum, zip(prompt_tokens, answers, strict=True))),
        tuple(stable_hash([s.group, s.context]) if s.group else "" for s in samples),
        aware_only=frozenset(
            position for position, s in enumerate(samples) if s.metadata.get("query_aware_only")
        ),
    )


def _too_long(cell: Cell, model: CateKVModel) -> dict[int, str]:
    """Why samples do not fit the model's window, by position."""
    window = context_window(model.config)
    if window is None or cell.sizes is None:
        return {}
    return {
        position: f"it needs {size} tokens and the model's window is {window}; give --lengths "
        f"{window} to have it cut by the task's own rule"
        for position, size in enumerate(cell.sizes)
        if size > window
    }


def _cut_warning(cell: Cell, samples: Sequence[Sample]) -> tuple[str, ...]:
    cut = [int(sample.metadata.get("cut_tokens", 0)) for sample in samples]
    touched = [tokens for tokens in cut if tokens]
    if not touched:
        return ()
    return (
        f"{cell.task}: {len(touched)} of {len(cut)} samples were cut to {cell.length} tokens, by "
        f"up to {max(touched)}; each record says by how many (metadata.cut_tokens)",
    )


def _file_cell(path: str, model: CateKVModel, settings: RunSettings) -> Cell:
    samples = tasks.read(path)[: settings.samples]
    check_file(path, samples, settings)
    refuse_overlap(settings.reference_contexts, samples, path)
    tokens = [len(encode(s, model.tokenizer, settings.chat_template)) for s in samples]
    cell = _held_cell(samples[0].task, 0, samples, settings, tokens)
    skips = _too_long(cell, model)
    if skips and not find(cell.task).natural:
        position = min(skips)
        assert cell.sizes is not None
        raise UserError(
            f"{path}: sample {samples[position].index} needs {cell.sizes[position]} tokens but the "
            f"model's window is {context_window(model.config)}; leave it out or use another model "
            "(nothing is ever truncated)"
        )
    reasons = {position: reason.partition(";")[0] for position, reason in skips.items()}
    warnings = tokenizer_warning(path, samples, tokenizer_hash(model.tokenizer))
    return dataclasses.replace(cell, skips=reasons, warnings=warnings)


def sample_hash(sample: Sample) -> str:
    """Identity of a sample's text and answers."""
    return stable_hash(
        [sample.context, sample.question, sample.answer_prefix, list(sample.outputs)]
    )
