"""Named selections of tasks, lengths and samples: ``catekv evaluate --suite NAME``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.evaluation.columns.settings import PAPER_LENGTH, PAPER_SAMPLES, PAPER_TASKS
from catekv.tasks.registry import all_tasks, available, find

if TYPE_CHECKING:
    from catekv.evaluation.run.request import Request

MINI, PAPER = "mini", "paper"
#: Tokens and samples of the small suite.
MINI_LENGTH = 512
MINI_SAMPLES = 2
#: New tokens in it: whether a summary is good cannot be seen on a small model, only that it runs.
MINI_NEW_TOKENS = 32


@dataclass(frozen=True)
class Suite:
    """What a name stands for; an option that the user gives beats it.

    Attributes:
        lengths, samples: empty and None: the model's defaults.
        embedded: whether it is made for the embedded model and refuses another.
        task_options: for the tasks that have them.
    """

    name: str
    about: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    samples: int | None = None
    max_new_tokens: int | None = None
    embedded: bool = False
    paper: bool = False
    task_options: Mapping[str, Any] = field(default_factory=dict)


def suites() -> dict[str, Suite]:
    """All suites by name: ``mini``, ``paper``, and one for every benchmark, which is the part of a
    task's name before the slash."""
    benchmarks: dict[str, list[str]] = {}
    for task in available():
        benchmarks.setdefault(task.partition("/")[0], []).append(task)
    mini = Suite(
        MINI,
        f"every family, as far as the embedded model can read its tasks: {MINI_SAMPLES} samples "
        f"of {MINI_LENGTH} tokens, generated rows",
        tuple(name for name, task in all_tasks().items() if task.small),
        (MINI_LENGTH,),
        MINI_SAMPLES,
        MINI_NEW_TOKENS,
        embedded=True,
        task_options={"source": "built-in"},
    )
    paper = Suite(
        PAPER, "RULER as published", PAPER_TASKS, (PAPER_LENGTH,), PAPER_SAMPLES, paper=True
    )
    return {
        MINI: mini,
        PAPER: paper,
        **{
            name: Suite(name, f"all tasks of {name}", tuple(found))
            for name, found in benchmarks.items()
        },
    }


def applied(request: Request) -> Request:
    """The request with everything that its suite says and its user did not.

    Raises:
        UserError: unknown suite, or one that is not for this model.
    """
    if not request.suite:
        return request
    known = suites()
    suite = known.get(request.suite)
    if suite is None:
        raise UserError(f"unknown suite {request.suite!r}; there are {', '.join(known)}")
    if suite.embedded and not request.embedded:
        raise UserError(
            f"suite {suite.name} is made for the embedded model; leave out --model, or name tasks "
            "and lengths"
        )
    if request.tasks:
        raise UserError(f"suite {suite.name} names its tasks; leave out --tasks or --suite")
    options = {name: value for name, value in suite.task_options.items() if _known(suite, name)}
    return dataclasses.replace(
        request,
        tasks=suite.tasks,
        lengths=request.lengths or suite.lengths,
        samples=suite.samples if request.samples is None else request.samples,
        max_new_tokens=suite.max_new_tokens
        if request.max_new_tokens is None
        else request.max_new_tokens,
        task_options={**options, **request.task_options},
        paper=request.paper or suite.paper,
    )


def _known(suite: Suite, option: str) -> bool:
    return any(option in find(task).option_names() for task in suite.tasks)
