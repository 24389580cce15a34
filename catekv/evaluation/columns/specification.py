"""How people write down methods and masks: ``snapkv:budget=256``, ``--mask chosen=FOLDER``."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec
from catekv.methods import Method, ModelShape, available, method_class
from catekv.methods.allocator_files import load_plain
from catekv.methods.catekv import DEFAULT_RATIO
from catekv.methods.head_mask import HeadMask
from catekv.methods.registry import unknown

_NAME = re.compile(r"[\w.+-]+")
#: What an object in a file of methods holds besides options.
_NAMES = ("name", "label")


@dataclasses.dataclass(frozen=True)
class WrittenMethod:
    """``[LABEL=]NAME[:option=value,...]``, taken apart; ``label`` is empty if none was written."""

    label: str
    name: str
    options: dict[str, Any]

    def refuse_flags(self, flags: Iterable[str]) -> None:
        """Raise ``UserError`` where flags set options that the text sets as well.

        For commands with one method: among several, flags are for those that say nothing.
        """
        for name in flags:
            if name in self.options:
                raise UserError(
                    f"--{name.replace('_', '-')} and the option {name} of the method say the same; "
                    "give one of them"
                )


def canonical_name(name: str) -> str:
    """The registered name of a method however it is spelt: CateKV, SnapKV, StreamingLLM, Full.

    Raises:
        UserError: unknown name; the message lists those there are.
    """

    def squeezed(text: str) -> str:
        return re.sub(r"[-_\s]", "", text.lower())

    for candidate in available():
        if squeezed(candidate) == squeezed(name):
            return candidate
    raise unknown(name)


def parse_value(text: str) -> Any:
    """Plain value of an option: none, true, false, an integer, a number, or the text itself."""
    named: dict[str, Any] = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_method(text: str) -> WrittenMethod:
    """Take ``[LABEL=]NAME[:option=value,...]`` apart.

    An option that has options itself is written with dots, its kind without:
    ``snapkv:budgets=headkv,budgets.scores=FILE`` is ``{"kind": "headkv", "scores": FILE}``.

    Raises:
        UserError: for another form or an unknown method.
    """
    head, _, tail = text.partition(":")
    label, equals, name = head.rpartition("=")
    if not _NAME.fullmatch(name) or (equals and not _NAME.fullmatch(label)):
        raise UserError(f"cannot read method {text!r}; write NAME or LABEL=NAME:option=value,...")
    options: dict[str, Any] = {}
    for part in tail.split(",") if tail else []:
        option, equals, value = part.partition("=")
        if not equals or not option.strip():
            raise UserError(f"cannot read option {part!r} of method {name!r}; write option=value")
        outer, dot, inner = option.strip().partition(".")
        if not dot:
            plain, nested = parse_value(value.strip()), options.get(outer)
            # what was written with dots before its kind belongs to it
            options[outer] = {**nested, "kind": plain} if isinstance(nested, dict) else plain
            continue
        kind = options.get(outer)
        nested = kind if isinstance(kind, dict) else {} if kind is None else {"kind": kind}
        options[outer] = {**nested, inner: parse_value(value.strip())}
    return WrittenMethod(label, canonical_name(name), options)


def _is_file(text: str) -> bool:
    """Whether a text names a file of methods; the options of a method may end with one as well."""
    if Path(text).suffix not in (".json", ".yaml", ".yml"):
        return False
    head, colon, tail = text.partition(":")
    spelt = bool(colon and "=" in tail and "." not in head and "/" not in head)
    return not spelt or Path(text).exists()


def parse_methods(texts: Sequence[str]) -> list[WrittenMethod]:
    """Methods as :func:`parse_method` reads them, or from files: a JSON or YAML list of such texts
    and of objects with ``name``, options, and possibly ``label``.

    Raises:
        UserError: an unreadable file, another form, or an unknown method.
    """
    written: list[WrittenMethod] = []
    for text in texts:
        if not _is_file(text):
            written.append(parse_method(text))
            continue
        content = load_plain(Path(text))
        for item in content if isinstance(content, list) else [content]:
            if isinstance(item, str):
                written.append(parse_method(item))
            elif isinstance(item, dict) and isinstance(item.get("name"), str):
                options = {key: value for key, value in item.items() if key not in _NAMES}
                label = str(item.get("label", ""))
                written.append(WrittenMethod(label, canonical_name(item["name"]), options))
            else:
                raise UserError(
                    f"{text} holds {str(item)[:40]!r}; a method is a text NAME:option=value,... or "
                    "an object with its name and options"
                )
    return written


def parse_masks(
    texts: Sequence[str],
    shape: ModelShape,
    ratio: float | None,
    edges: Mapping[str, int] | None = None,
) -> dict[str, HeadMask]:
    """Named masks from ``[NAME=]SOURCE``.

    A source is a path (see :meth:`catekv.HeadMask.load`), ``random:SEED`` (as many adaptive heads
    as the first mask of the list; the share ``ratio`` if it is the first itself) or ``reversed``
    (:meth:`catekv.HeadMask.reversed` of the first mask). A mask without a name is called ``mask``,
    ``random-SEED`` or ``reversed``. A mask that does not say with which edges it was made follows
    those of the first; where that does not say it either, ``edges``.

    Raises:
        UserError: unreadable mask, mask of another shape, or a relative one without a first.
    """
    masks: dict[str, HeadMask] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals:
            name, source = "", text
        kind, _, argument = source.partition(":")
        if kind == "reversed" and not argument:
            mask, default = _first(masks, text).reversed(), "reversed"
        elif kind == "random":
            seed = argument or "0"
            if not seed.isdecimal() or len(seed) > 18:
                raise UserError(
                    f"cannot read mask {text[:40]!r}; write random:SEED with a number of at most "
                    "18 digits"
                )
            share = next(iter(masks.values())).ratio if masks else ratio or DEFAULT_RATIO
            mask, default = HeadMask.random(shape, share, int(seed)), f"random-{seed}"
        else:
            mask, default = HeadMask.load(source, ratio, DEFAULT_RATIO), "mask"
        mask.validate(shape)
        name = name or default
        if name in masks:
            raise UserError(f"mask name {name!r} is used twice; write NAME=SOURCE")
        edges = next(iter(masks.values())).edges if masks else edges
        masks[name] = mask.with_edges(edges or {})
    return masks


def _first(masks: Mapping[str, HeadMask], text: str) -> HeadMask:
    if not masks:
        raise UserError(f"mask {text!r} needs a first mask to imitate; give --mask PATH before it")
    return next(iter(masks.values()))


def _has_size(name: str) -> bool:
    """Whether a method can be told how much to keep."""
    cls = method_class(name)
    return "budget" in option_names(name) or cls.with_total is not Method.with_total


def method_specs(
    texts: Sequence[str],
    masks: Mapping[str, HeadMask],
    defaults: Mapping[str, Mapping[str, Any]],
    masks_at: Callable[[float], Mapping[str, HeadMask]] | None = None,
) -> tuple[MethodSpec, ...]:
    """The columns of a run.

    Args:
        texts: methods as :func:`parse_methods` reads them. A method with a head mask appears once
            for every mask, unless it names one (``catekv:mask=chosen``).
        masks: named masks; the first one is the reference for equal memory.
        defaults: options per method name, below those written.
        masks_at: the same masks at the ratio that a column asks for (``catekv:ratio=0.3``);
            without it, a ratio must be that of the mask.

    A method without a mask whose size (budget, ratio ...) nobody set keeps as many entries as the
    first masked method (``equal memory``); without one the method's own default holds.
    """
    written = parse_methods(texts)
    masked = [
        _masked(item, masks, defaults.get(item.name, {}), masks_at)
        if _takes_mask(item.name)
        else []
        for item in written
    ]
    reference = next((specs[0] for specs in masked if specs), None) or _reference(masks, defaults)
    result: list[MethodSpec] = []
    for item, specs in zip(written, masked, strict=True):
        if specs:
            result.extend(specs)
            continue
        options = {**defaults.get(item.name, {}), **item.options}
        sizes = {"keep", "budgets", *method_class(item.name).size_options}
        follows = _has_size(item.name) and not sizes.intersection(options)
        result.append(
            MethodSpec(item.label or item.name, item.name, options, reference if follows else None)
        )
    for spec in result:
        spec.create()
    return tuple(result)


def _reference(
    masks: Mapping[str, HeadMask], defaults: Mapping[str, Mapping[str, Any]]
) -> MethodSpec | None:
    if not masks:
        return None
    return _masked(WrittenMethod("", "catekv", {}), masks, defaults.get("catekv", {}))[0]


def _masked(
    item: WrittenMethod,
    masks: Mapping[str, HeadMask],
    defaults: Mapping[str, Any],
    masks_at: Callable[[float], Mapping[str, HeadMask]] | None = None,
) -> list[MethodSpec]:
    options = {**defaults, **item.options}
    if masks and masks_at is not None and type(options.get("ratio")) in (int, float):
        masks = masks_at(options.pop("ratio"))
    chosen = options.pop("mask", None)
    label = item.label or item.name
    if "head_mask" in options:
        raise UserError(
            f"method {label!r}: head_mask {options['head_mask']!r} would not be read; give the "
            "mask with --mask NAME=PATH and choose it with the option mask=NAME"
        )
    if chosen is not None:
        if chosen not in masks:
            raise UserError(
                f"method {label!r} wants mask {chosen!r}; give it with --mask {chosen}=PATH"
            )
        return [MethodSpec(label, item.name, {**options, "head_mask": masks[chosen]})]
    if not masks:
        raise without_mask(item.name)
    many = len(masks) > 1
    return [
        MethodSpec(f"{label}-{name}" if many else label, item.name, {**options, "head_mask": mask})
        for name, mask in masks.items()
    ]


def refuse_without_masks(written: Sequence[WrittenMethod], model: str) -> None:
    """Refuse methods that take a head mask where a model has none.

    Raises:
        UserError: what to do instead, with the commands for this model.
    """
    for item in filter(lacks_mask, written):
        raise without_mask(item.name, model)


def lacks_mask(item: WrittenMethod) -> bool:
    """Whether a method takes a head mask and its text names none."""
    return _takes_mask(item.name) and not {"mask", "head_mask"}.intersection(item.options)


def without_mask(name: str, model: str = "MODEL") -> UserError:
    """The error for a method that takes a head mask where there is none."""
    return UserError(
        f"method {name!r} needs a head mask, and there is none: take a method without, e.g. "
        "snapkv (`catekv methods` lists them), make masks once (`catekv calibrate --model "
        f"{shlex.quote(model)} --quick`, which says how long it takes), or give --mask PATH"
    )


def option_names(name: str) -> list[str]:
    """The options of a method."""
    return [item.name for item in dataclasses.fields(method_class(name))]


def _takes_mask(name: str) -> bool:
    return "head_mask" in option_names(name)
