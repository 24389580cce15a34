"""The jobs of a sweep: one run directory each, small enough to place, large enough to share."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec, stable_hash
from catekv.evaluation.options import refuse_twice
from catekv.evaluation.records import environment
from catekv.evaluation.run.cells import is_file
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.session import DEFAULT_SAMPLES, method_specs_for
from catekv.evaluation.sweep.grid import Grid, GridModel
from catekv.loading import attention_base, read_config
from catekv.methods import ModelShape
from catekv.models.compat import context_window
from catekv.prefill.sizes import ModelSizes, sizes_of_config
from catekv.tasks.registry import find

#: Options of every task's sample builder.
_BUILDER_OPTIONS = frozenset({"wording", "words_path"})
_COMMON_SEED, _COMMON_DTYPE = 42, "auto"
RUNS = "runs"


@dataclass(frozen=True)
class Job:
    """One run directory: a model, a task and a length, with all methods and ratios as columns.

    Attributes:
        name: its folder below ``runs/`` of the sweep.
        model, task, length, seed, dtype: its place in the grid.
        request: for a single process; where its results go is not set.
        specs: the columns, masks and ratios read.
        tokens: the longest prompt to make room for, answer included.
        config, model_sizes: of the model.
        hash: of all that decides the results, without the device.
    """

    name: str
    model: str
    task: str
    length: int
    seed: int
    dtype: str
    request: Request
    specs: tuple[MethodSpec, ...]
    tokens: int
    config: Any
    model_sizes: ModelSizes
    hash: str

    @property
    def samples(self) -> int:
        assert self.request.samples is not None
        return self.request.samples

    @property
    def measurements(self) -> int:
        """Records of the finished job, if the task has as many samples as were asked for."""
        return self.samples * len(self.specs) * len(self.request.questions)

    def sizes(self, kind: str) -> ModelSizes:
        """Sizes of the model in the number format it gets on a device (``cuda`` or ``cpu``)."""
        size = element_bytes(self.config, self.dtype, kind)
        return dataclasses.replace(self.model_sizes, element_bytes=size)


def element_bytes(config: Any, dtype: str, kind: str) -> int:
    """Bytes of a number of a model that is loaded as ``dtype``; see
    :func:`catekv.loading.resolve_dtype`."""
    if dtype == "auto":
        own = getattr(config, "dtype", None)
        if kind == "cpu" or not isinstance(own, torch.dtype):
            return 4
        return own.itemsize
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen.itemsize


def make_jobs(grid: Grid) -> list[Job]:
    """All jobs of a grid, models together and long prompts first.

    Raises:
        UserError: a model without a readable configuration, an unknown task, method or option, a
            mask that does not fit, a length beyond a model's window, or nothing left to do.
    """
    _check_options(grid)
    jobs: list[Job] = []
    columns: list[MethodSpec] = []
    for model in grid.models:
        config = _config(model)
        sizes = sizes_of_config(config)
        specs = _specs(grid, model, config, sizes.shape)
        columns += specs
        identity = environment.model_identity(Request(model=model.path).model_path)
        for seed in grid.seeds:
            for dtype in grid.dtypes:
                # a long job that starts last would be waited for alone
                for length in sorted(grid.lengths, reverse=True):
                    for task in grid.tasks:
                        place = {"model": model.name, "task": task, "seed": seed, "dtype": dtype}
                        if is_file(task):
                            if length != max(grid.lengths):
                                continue
                            place["length"] = 0
                        else:
                            place["length"] = length
                        if not grid.excludes(**{**place, "length": length}):
                            jobs.append(_job(grid, model, config, sizes, specs, identity, place))
    _refuse_unheeded(grid, columns)
    if not jobs:
        raise UserError("the grid excludes everything it names; leave something to measure")
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two jobs would write to {RUNS}/{name}; rename one of the files or models"
            )
    return jobs


def _check_options(grid: Grid) -> None:
    attention_base(grid.settings.get("attention", "auto"))
    names = [task if is_file(task) else find(task).name for task in grid.tasks]
    refuse_twice("the list of tasks", names)
    known: set[str] = set(_BUILDER_OPTIONS)
    for task in grid.tasks:
        if not is_file(task):
            known |= {*find(task).option_names()}
    for option in grid.settings.get("task_options", {}):
        if option not in known:
            raise UserError(
                f"no task of the grid has an option {option!r}; valid options: "
                f"{', '.join(sorted(known))}"
            )


def _config(model: GridModel) -> Any:
    return read_config(Request(model=model.path).model_path)


def _specs(grid: Grid, model: GridModel, config: Any, shape: ModelShape) -> tuple[MethodSpec, ...]:
    """The columns: every method at every ratio it depends on, once where it depends on none."""
    # of a model only its shape is asked
    known: Any = SimpleNamespace(shape=shape, config=config)
    found: dict[str, MethodSpec] = {}
    for ratio in grid.ratios:
        for spec in method_specs_for(_request(grid, model, ratio=ratio), known):
            several = _follows(spec) and len(grid.ratios) > 1
            label = f"{spec.label}-r{ratio:g}" if several else spec.label
            same = found.setdefault(label, dataclasses.replace(spec, label=label))
            if same.to_dict() != spec.to_dict():
                raise UserError(f"two methods of the grid are called {label!r}; give them labels")
            spec.create().validate(shape)
    return tuple(found.values())


def _follows(spec: MethodSpec) -> bool:
    """Whether a column depends on a head mask, its own or one of equal memory."""
    return "head_mask" in spec.options or spec.equal_memory_to is not None


def _refuse_unheeded(grid: Grid, specs: Iterable[MethodSpec]) -> None:
    """Refuse sizes of catekv where no column depends on them."""
    given = ["ratios"] * (grid.ratios != (None,))
    given += [name for name in ("retention", "budget") if name in grid.settings]
    if given and not any(map(_follows, specs)):
        raise UserError(
            "no method of the grid has a head mask, or the memory of one that has; leave out "
            f"{given[0]}, or add catekv"
        )


def _request(grid: Grid, model: GridModel, **place: Any) -> Request:
    return Request(
        model=model.path,
        methods=grid.methods,
        masks=model.masks,
        questions=grid.questions,
        **{**grid.settings, **place},
    )


def _job(
    grid: Grid,
    model: GridModel,
    config: Any,
    sizes: ModelSizes,
    specs: tuple[MethodSpec, ...],
    identity: str,
    place: dict[str, Any],
) -> Job:
    task, length, seed, dtype = (place[axis] for axis in ("task", "length", "seed", "dtype"))
    window = context_window(config)
    if window is not None and length > window:
        raise UserError(
            f"length {length} exceeds the window of model {model.name!r} ({window} tokens); add to "
            f"exclude: {{model: {model.name}, length: {length}}}"
        )
    if not length and not is_file(task) and not find(task).natural:
        raise UserError(
            f"length 0 means whole rows, but {task} is built to a length; add to exclude: "
            f"{{task: {task}, length: 0}}"
        )
    options = dict(grid.settings.get("task_options", {}))
    if not is_file(task):
        own = {*find(task).option_names()} | _BUILDER_OPTIONS
        options = {name: value for name, value in options.items() if name in own}
    request = _request(
        grid,
        model,
        tasks=(task,),
        lengths=() if is_file(task) else (length,),
        samples=grid.settings.get("samples", DEFAULT_SAMPLES),
        seed=seed,
        dtype=dtype,
        task_options=options,
    )
    parts = [Path(task).stem if is_file(task) else task, str(length) if length else "rows"]
    parts += [f"seed{seed}"] * (seed != _COMMON_SEED) + [dtype] * (dtype != _COMMON_DTYPE)
    asked = dataclasses.asdict(dataclasses.replace(request, model=None, masks=()))
    del asked["plugins"]  # where code lies decides nothing
    identity_parts = [identity, asked, [[spec.label, spec.to_dict()] for spec in specs]]
    if is_file(task):
        identity_parts.append(_digest(Path(task)))
    return Job(
        name=f"{_word(model.name)}/{_word('-'.join(parts))}",
        model=model.name,
        task=task,
        length=length,
        seed=seed,
        dtype=dtype,
        request=request,
        specs=specs,
        # rows have lengths of their own, up to the window
        tokens=length or window or max(grid.lengths),
        config=config,
        model_sizes=sizes,
        hash=stable_hash(identity_parts),
    )


def _digest(file: Path) -> str:
    """SHA-256 of a file of samples: another one under the same name is another job."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; give the path of a JSONL file, relative to "
            "where the sweep is started"
        ) from error


def _word(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"
