"""The grid of a sweep: a YAML file, checked key by key before anything is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.columns.settings import PREFILL_MODES, QUESTION_MODES
from catekv.evaluation.options import MOST_SAMPLES
from catekv.evaluation.sweep import checks
from catekv.files import parse_yaml, read_text
from catekv.methods.registry import nearest
from catekv.models.source import short_name

EMBEDDED = "embedded"
EXAMPLE = "examples/mini_sweep.yaml"
DTYPES = ("auto", "float32", "bfloat16", "float16")
PRESETS = ("published", "recommended")
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class GridModel:
    """A model of the grid: its short ``name``, folder or hub name (None: the embedded model), and
    head masks as ``--mask`` takes them (empty: those that come with it)."""

    name: str
    path: str | None
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """How jobs share machines.

    Attributes:
        cpus: cores of a job; None: on machines without GPUs the cores are shared out among the
            jobs, beside a GPU one.
        share: whether jobs that need less than half of a GPU share it.
    """

    cpus: int | None = None
    share: bool = True


@dataclass(frozen=True)
class Grid:
    """What a sweep measures: every combination of the axes that ``exclude`` does not name.

    Attributes:
        models, methods, ratios, tasks, lengths, questions, seeds, dtypes: the axes. Methods and
            ratios are columns of one run, so that they share its prefills.
        settings: further options of ``catekv evaluate`` that hold everywhere, by their names in
            :class:`catekv.evaluation.run.request.Request`.
        exclude: combinations to leave out; each names values of some axes.
    """

    models: tuple[GridModel, ...]
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    ratios: tuple[float | None, ...] = (None,)
    questions: tuple[str, ...] = ("agnostic",)
    seeds: tuple[int, ...] = (42,)
    dtypes: tuple[str, ...] = ("auto",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    exclude: tuple[Mapping[str, tuple[Any, ...]], ...] = ()
    placement: Placement = Placement()

    def excludes(self, **combination: Any) -> bool:
        """Whether a combination (``model``, ``task``, ``length``, ``seed``, ``dtype``) is left
        out."""
        return any(
            all(combination[axis] in values for axis, values in rule.items())
            for rule in self.exclude
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


def read_grid(path: str | Path) -> Grid:
    """Read and check a grid file.

    Raises:
        UserError: unreadable, or a key or value that has no place in it; names the key.
    """
    return _grid(_content(Path(path)), str(path))


def _content(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        """Refuses a key that is written twice, which YAML would read as the second one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise UserError(f"{path}: {key!r} is written twice; write it once")
            return super().construct_mapping(node, deep)

    content = parse_yaml(read_text(path), str(path), f"see {EXAMPLE}", Loader)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds no grid; write keys and values, see examples/mini_sweep.yaml"
        )
    return content


def _grid(content: Mapping[str, Any], path: str) -> Grid:
    for key in content:
        if key not in _KEYS:
            raise UserError(
                f"{path}: unknown key {key!r}{nearest(str(key), _KEYS)}; keys: {', '.join(_KEYS)}"
            )
    for key in ("models", "methods", "tasks", "lengths"):
        if key not in content:
            raise UserError(f"{path}: {key} is missing; a grid has models, methods, tasks, lengths")
    axes = {key: _axis(path, key, content[key], check) for key, check in _AXES.items()
            if key in content}  # fmt: skip
    settings = {}
    for key, check in _SETTINGS.items():
        if key in content:
            value = content[key]
            if (problem := check(value)) is not None:
                raise UserError(f"{path}: {key} is {value!r}; {problem}")
            settings[key] = value
    models = tuple(_model(path, item) for item in _listed(content["models"]))
    names = [model.name for model in models]
    if not models:
        raise UserError(f"{path}: models is empty; name at least one")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{path}: two models are called {name!r}; give each a name, as in "
                "{model: FOLDER, name: NAME}"
            )
    grid = Grid(
        models=models, settings=settings, placement=_placement(path, content), **axes
    )  # fmt: skip
    rules = tuple(_rule(path, item, grid) for item in _listed(content.get("exclude", [])))
    return Grid(**{**vars(grid), "exclude": rules})


def _listed(value: Any) -> list[Any]:
    """A list, or one value in the place of a list."""
    return list(value) if isinstance(value, list) else [value]


def _axis(path: str, key: str, value: Any, check: Callable[[Any], str | None]) -> tuple[Any, ...]:
    values = _listed(value)
    if not values:
        raise UserError(f"{path}: {key} is empty; give at least one value")
    for item in values:
        if (problem := check(item)) is not None:
            raise UserError(f"{path}: {key} holds {item!r}; {problem}")
        if values.count(item) > 1:
            raise UserError(f"{path}: {key} holds {item!r} twice; write it once")
    return tuple(values)


def _model(path: str, item: Any) -> GridModel:
    if isinstance(item, str) and item:
        item = {"model": item}
    if not isinstance(item, dict) or not isinstance(item.get("model"), str) or not item["model"]:
        raise UserError(
            f"{path}: models holds {item!r}; write a folder, a hub name or {EMBEDDED!r}, or "
            "{model: FOLDER, name: NAME, masks: [SOURCE]}"
        )
    known = ("model", "name", "masks")
    for key in item:
        if key not in known:
            raise UserError(
                f"{path}: a model has no {key!r}{nearest(str(key), known)}; keys: "
                f"{', '.join(known)}"
            )
    source = item["model"]
    name = item.get("name", short_name(source))
    masks = _listed(item.get("masks", []))
    if not isinstance(name, str) or not name or "/" in name:
        raise UserError(f"{path}: the name of model {source!r} is {name!r}; give one without '/'")
    if not all(isinstance(mask, str) and mask for mask in masks):
        raise UserError(f"{path}: masks of model {source!r} must be [NAME=]SOURCE, as for --mask")
    return GridModel(name, None if source == EMBEDDED else source, tuple(masks))


def _placement(path: str, content: Mapping[str, Any]) -> Placement:
    value = content.get("placement", {})
    if not isinstance(value, dict):
        raise UserError(f"{path}: placement is {value!r}; write {{cpus: N, share: true}}")
    known = {"cpus": checks.whole(1), "share": checks.truth}
    for key, item in value.items():
        if key not in known:
            raise UserError(
                f"{path}: placement has no {key!r}{nearest(str(key), list(known))}; keys: "
                f"{', '.join(known)}"
            )
        if (problem := known[key](item)) is not None:
            raise UserError(f"{path}: placement.{key} is {item!r}; {problem}")
    return Placement(**value)


def _rule(path: str, item: Any, grid: Grid) -> dict[str, tuple[Any, ...]]:
    axes: dict[str, tuple[Any, ...]] = {
        "model": tuple(model.name for model in grid.models),
        "task": grid.tasks,
        "length": grid.lengths,
        "seed": grid.seeds,
        "dtype": grid.dtypes,
    }
    if not isinstance(item, dict) or not item:
        raise UserError(f"{path}: exclude holds {item!r}; write e.g. {{model: NAME, length: 4096}}")
    rule: dict[str, tuple[Any, ...]] = {}
    for axis, value in item.items():
        if axis not in axes:
            raise UserError(
                f"{path}: exclude names {axis!r}{nearest(str(axis), list(axes))}; it takes "
                f"{', '.join(axes)}"
            )
        rule[axis] = tuple(_listed(value))
        if not rule[axis]:
            raise UserError(f"{path}: exclude names no {axis}; give at least one value")
        for one in rule[axis]:
            if isinstance(one, bool) or one not in axes[axis]:
                raise UserError(
                    f"{path}: exclude names {axis} {one!r}, which the grid does not have; it has "
                    f"{', '.join(map(repr, axes[axis]))}"
                )
    return rule


_AXES: dict[str, Callable[[Any], str | None]] = {
    "methods": checks.word,
    "ratios": checks.share,
    "tasks": checks.word,
    "lengths": checks.whole(0),
    "questions": checks.one_of(QUESTION_MODES),
    "seeds": checks.whole(0, MOST_SEED),
    "dtypes": checks.one_of(DTYPES),
}
_SETTINGS: dict[str, Callable[[Any], str | None]] = {
    "samples": checks.whole(1, MOST_SAMPLES),
    "retention": checks.share,
    "budget": checks.whole(1),
    "preset": checks.one_of(PRESETS),
    "chat_template": checks.word,
    "max_new_tokens": checks.whole(1),
    "task_options": checks.options,
    "prefill": checks.one_of(PREFILL_MODES),
    "chunk_size": checks.whole(1),
    "joint_decode": checks.truth,
    "batch_size": checks.whole(1),
    "sanity": checks.truth,
    "max_errors": checks.share_above_none,
    "attention": checks.word,
    "plugins": checks.words,
    "device": checks.one_of(("auto", "cpu", "cuda")),
}
_KEYS = tuple(itertools.chain(["models"], _AXES, _SETTINGS, ["exclude", "placement"]))
