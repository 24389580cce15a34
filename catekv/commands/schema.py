"""Options declared once: a dataclass becomes flags, and parsed flags become the dataclass.

What a field may say of itself is in :mod:`catekv.evaluation.options`. transformers'
``HfArgumentParser`` does not serve: importing it takes a second, and it has no ranges, repeated
flags or values with commas.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from catekv.commands.numbers import real, shown, whole
from catekv.errors import UserError
from catekv.evaluation.options import MOST_TOKENS
from catekv.evaluation.run.request import split_list

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class _Option:
    """One field of a dataclass, seen as an option of a command line."""

    name: str
    flag: str
    kind: Any
    metadata: Mapping[str, Any]
    default: Any

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.kind) is tuple and not self.is_choice_of_values

    @property
    def is_mapping(self) -> bool:
        return typing.get_origin(self.kind) is Mapping or typing.get_origin(self.kind) is dict

    @property
    def is_choice_of_values(self) -> bool:
        return isinstance(self.metadata.get("choices"), Mapping)

    @property
    def element(self) -> Any:
        """Type of a list's values, or of the value."""
        return typing.get_args(self.kind)[0] if self.is_list else self.kind

    def parser(self) -> Callable[[str], Any] | None:
        """The ``type`` that argparse is told; None: the word itself."""
        bounds = {name: self.metadata[name] for name in ("least", "most") if name in self.metadata}
        if self.element is int and not self.is_list:
            return whole(**bounds)
        if self.element is float:
            return real(**bounds)
        return Path if self.element is Path else None

    def read(self, value: Any) -> Any:
        """The field's value from what argparse made of the words."""
        if self.is_choice_of_values and isinstance(value, str):
            return self.metadata["choices"][value]
        if self.is_mapping and isinstance(value, list):
            return options_from(self.flag, value)
        if not (self.is_list and isinstance(value, list)):
            return value
        if self.element is int:
            return integers(self.flag, split_list(value), self.metadata.get("least", 0))
        as_given = self.element is not str or any(
            self.metadata.get(name) for name in ("repeat", "verbatim", "choices")
        )
        return tuple(value) if as_given else split_list(value)

    def words(self, value: Any) -> list[str]:
        """The words of a command line that stand for a value; none for the default."""
        if value == self.default and not self.required:
            return []
        if isinstance(value, bool):
            return [self.flag if value else "--no-" + self.flag.removeprefix("--")]
        flag = [] if self.metadata.get("positional") else [self.flag]
        if self.is_choice_of_values:
            choices = self.metadata["choices"]
            return [*flag, next(word for word, meant in choices.items() if meant == value)]
        if self.is_mapping:
            return [word for name, one in value.items() for word in (*flag, f"{name}={one}")]
        if self.is_list and self.metadata.get("repeat"):
            return [word for part in value for word in (*flag, str(part))]
        return [*flag, *(map(str, value) if self.is_list else [str(value)])]


@dataclasses.dataclass(frozen=True)
class Group(Generic[Options]):
    """The options that a command takes from one dataclass; parsed values have its fields' names.

    Args:
        cls: the dataclass.
        only: the fields to take, in this order; None: all that have a help text.
        flags: flags of single fields instead of their usual ones.
        defaults: defaults of single fields instead of their usual ones.
        helps: help texts of single fields instead of their usual ones.
        separator: character between the words of a flag.
    """

    cls: type[Options]
    only: Collection[str] | None = None
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    helps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    separator: str = "-"

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        for option in self.options():
            _add(parser, option)

    def read(self, arguments: argparse.Namespace, **values: Any) -> Options:
        """The dataclass from parsed arguments; ``values`` are set besides or instead.

        Raises:
            UserError: words that are no values of their fields.
        """
        return self.cls(**{**self.values(arguments, except_for=values), **values})

    def values(
        self, arguments: argparse.Namespace, except_for: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values of the fields, as :meth:`read` reads them."""
        return {
            option.name: option.read(getattr(arguments, option.name))
            for option in self.options()
            if option.name not in except_for
        }

    def words(self, options: Options) -> list[str]:
        """The words that :meth:`add` and :meth:`read` turn into ``options`` again."""
        parts = sorted(self.options(), key=lambda option: not option.metadata.get("positional"))
        return [word for part in parts for word in part.words(getattr(options, part.name))]

    def options(self) -> Iterator[_Option]:
        """The fields, seen as options of a command line."""
        fields: dict[str, Any] = {item.name: item for item in dataclasses.fields(self.cls)}  # type: ignore[arg-type]
        kinds = typing.get_type_hints(self.cls)
        for name in fields if self.only is None else self.only:
            item = fields[name]
            if "help" not in item.metadata:
                continue
            flag = item.metadata.get("flag", "--" + name.replace("_", "-"))
            flag = "--" + flag[2:].replace("-", self.separator)
            default = item.default
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            yield _Option(
                name,
                self.flags.get(name, flag),
                _present(kinds[name]),
                {**item.metadata, "help": self.helps.get(name, item.metadata["help"])},
                self.defaults.get(name, default),
            )


class PassedOn:
    """All words behind a command, ``--help`` too, for a program that reads them itself."""

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Take everything as ``words``."""
        # no character begins an option of ours
        parser.prefix_chars = "\0"
        parser.add_argument("words", nargs="*")


Taken = Group[Any] | PassedOn


@dataclasses.dataclass(frozen=True)
class Action:
    """One of several things that a command does, such as ``show`` of ``catekv mask show``."""

    about: str
    options: tuple[Taken, ...]
    run: Callable[[argparse.Namespace], int]


def add_options(
    parser: argparse.ArgumentParser, options: Sequence[Taken] | Mapping[str, Action]
) -> None:
    """Add what a command takes: its options, or its actions by name with theirs."""
    if not isinstance(options, Mapping):
        for group in options:
            group.add(parser)
        return
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=type(parser)
    )
    for name, action in options.items():
        made = actions.add_parser(name, help=action.about, description=action.about)
        made.set_defaults(handler=action.run, parser=made)
        add_options(made, action.options)


def _add(parser: argparse.ArgumentParser, option: _Option) -> None:
    metadata = option.metadata
    text = metadata["help"].replace("{default}", _shown_default(option.default))
    given: dict[str, Any] = {"help": text}
    if not option.required:
        given["default"] = option.default
    if option.kind is bool:
        given["action"] = argparse.BooleanOptionalAction if option.default else "store_true"
    else:
        given |= {"type": option.parser(), "metavar": metadata.get("metavar")}
        if "choices" in metadata:
            given["choices"] = tuple(metadata["choices"])
        if option.is_mapping or (option.is_list and metadata.get("repeat")):
            # argparse would add to the default instead of replacing it
            given |= {"action": _Collect}
        elif option.is_list:
            given["nargs"] = "+"
    if metadata.get("positional"):
        if not option.required:
            given["nargs"] = "?"
        parser.add_argument(option.name, **given)
        return
    names = [option.flag, *metadata.get("also", ())]
    parser.add_argument(*names, dest=option.name, required=option.required, **given)


class _Collect(argparse.Action):
    """Collect the values of a repeated flag in a list that begins empty, whatever the default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, [*(before if isinstance(before, list) else ()), values])


def _present(kind: Any) -> Any:
    """The type that a value has where there is one: without ``| None``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _shown_default(default: Any) -> str:
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return text.replace("%", "%%")


def integers(option: str, texts: Sequence[str], least: int = 0) -> tuple[int, ...]:
    """Whole numbers from words; ``UserError`` names the option and the bad word."""
    for text in texts:
        if not text.isdecimal():
            raise UserError(f"{option} takes whole numbers of tokens, not {shown(text)}; e.g. 4096")
        if len(text) > 10 or not least <= int(text) <= MOST_TOKENS:
            wanted = f"from {least} to" if least else "up to"
            raise UserError(
                f"{option} {shown(text)} is out of range; give a whole number {wanted} "
                f"{MOST_TOKENS}"
            )
    return tuple(int(text) for text in texts)


def options_from(option: str, texts: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE words as a dict; ``UserError`` names the option and the bad word."""
    from catekv.evaluation.columns.specification import parse_value

    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} takes NAME=VALUE, not {text!r}")
        if name in values:
            raise UserError(f"{option} {name} is given twice; give it once")
        values[name] = parse_value(value)
    return values
