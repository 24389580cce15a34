"""Benchmarks and methods of the experiment, by the names that its flags take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv import methods, tasks
from catekv.errors import UserError
from catekv.methods import Method
from catekv.methods.atskv.files import check_model, load_predictors
from catekv.tasks.registry import find

#: the comparison's benchmarks and the tasks that they are
BENCHMARKS = {
    "LongBench": "longbench/qasper",
    "ZeroSCROLLS": "zeroscrolls/narrative_qa",
    "Synthetic": "synthetic",
}
#: the comparison's methods: registered name and options
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "sliding_window": ("sliding_window", {"budget": 1024}),
    "dynamic_kv": ("atskv_dynamic_kv", {}),
    "rocket_kv": ("atskv_rocket_kv", {}),
    "atskv": ("atskv", {}),
}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark under the name that it has in files."""

    name: str
    task: str
    options: dict[str, Any]

    @property
    def slug(self) -> str:
        return self.name.lower().replace("/", "_")


def benchmark(name: str, data: str) -> Benchmark:
    """A benchmark, or any task of ``catekv tasks``.

    Args:
        data: ``auto``, ``hub``, ``built-in`` or the path of a file or folder with rows; for tasks
            that are made of rows.

    Raises:
        UserError: unknown name.
    """
    known = {known.lower(): known for known in BENCHMARKS}
    task = BENCHMARKS.get(known.get(name.lower(), ""), name)
    try:
        valid = find(task).option_names()
    except UserError as error:
        raise UserError(
            f"unknown benchmark {name!r}; use {', '.join(BENCHMARKS)} or a task of `catekv tasks`"
        ) from error
    options: dict[str, Any] = {}
    if "source" in valid and find(task).natural:
        options = {"source": data} if data in ("auto", "hub", "built-in") else {"path": data}
    return Benchmark(known.get(name.lower(), name), task, options)


@dataclass(frozen=True)
class Predictor:
    """What the experiment's ``atskv`` predicts relevance with.

    Attributes:
        folder: of trained predictors; None: none.
        untrained: random weights were asked for.
    """

    folder: str | None = None
    untrained: bool = False


def method(name: str, predictor: Predictor, preset: str = "published") -> Method:
    """A method of the experiment, or any of ``catekv methods`` as NAME:option=value.

    Raises:
        UserError: unknown method or option; ``atskv`` without a predictor.
    """
    from catekv.evaluation.columns.specification import parse_method

    key = name.lower()
    if key in METHODS:
        registered, options = METHODS[key]
    else:
        try:
            written = parse_method(name)
        except UserError as error:
            raise UserError(f"{error}; the comparison's own are {', '.join(METHODS)}") from error
        registered, options = written.name, dict(written.options)
    if registered == "atskv":
        if not {"predictor", "untrained"} & set(options):
            options = {**options, **_predictor_options(predictor)}
        options.setdefault("preset", preset)
    return methods.create(registered, **options)


def _predictor_options(predictor: Predictor) -> dict[str, Any]:
    if predictor.folder is not None:
        return {"predictor": predictor.folder}
    if predictor.untrained:
        return {"untrained": True}
    raise UserError(
        "atskv needs a trained relevance predictor: --predictor FOLDER (made by `catekv atskv "
        "train`), --train to train one first, or --untrained for random weights, whose results "
        "mean nothing"
    )


def shipped_predictor() -> str | None:
    """Folder of the embedded model's predictors; None if it is not there."""
    from catekv.models import embedded

    folder = Path(embedded.path()) / "atskv"
    return str(folder) if folder.is_dir() else None


def check_predictor(folder: str, model_hash: str) -> None:
    """Raise ``UserError`` if predictors were trained for another model."""
    check_model(load_predictors(folder), folder, model_hash)


def samples_of(
    chosen: Benchmark, tokenizer: Any, size: int, count: int, seed: int, new_tokens: int
) -> list[Any]:
    """A benchmark's samples whose prompt and answer take at most ``size`` tokens.

    Raises:
        UserError: no data, or a size that is too short for the task.
    """
    return tasks.build(
        chosen.task,
        tokenizer,
        size,
        count,
        seed,
        max_answer_tokens=new_tokens,
        **chosen.options,
    )
