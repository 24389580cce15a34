"""Words to type: how an option that an error message mentions is given to the command at hand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError

if TYPE_CHECKING:
    from catekv.methods.base import Method

#: The method that a message is about: it opens with its name, or quotes it.
_ABOUT = re.compile(r"(?:(?P<plain>[a-z][a-z0-9_]*)(?:: | needs )|method '(?P<quoted>\w+)')")
#: Names of flags whose own field, as the method spells it, means something else in a command.
_FIELDS = {"chunk_size": "chunk_tokens"}
#: What a text says of options that stand for no wish of the user.
_LISTED = "valid options:"


def explained(action: Callable[[], int], parser: argparse.ArgumentParser) -> int:
    """Run a command; add to its complaints how ``parser`` takes the options they mention.

    Raises:
        UserError: as the command did.
    """
    try:
        return action()
    except UserError as error:
        raise UserError(str(error) + _remedy(str(error), parser)) from error


def _remedy(message: str, parser: argparse.ArgumentParser) -> str:
    """What is added to a message; nothing where it says itself what to type."""
    found = _ABOUT.match(message)
    name = (found["plain"] or found["quoted"]) if found else ""
    if not found or f"{name}:" in message[found.end() :] or "`catekv" in message:
        return _of_command(message, parser)
    from catekv.methods.registry import available, method_class

    if name not in available():
        return ""
    words = list(_words(method_class(name), message.partition(_LISTED)[0], parser))
    return f"; write {' '.join(words)}" if words else ""


def _of_command(message: str, parser: argparse.ArgumentParser) -> str:
    """For a message that opens with the name of a flag, and has no flag in it."""
    flag = "--" + message.partition(" ")[0].replace("_", "-")
    known = flag in parser._option_string_actions and "--" not in message
    return f"; it is {flag} of `{parser.prog}`" if known else ""


def _words(cls: type[Method], message: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Flags of the command's own, then what follows the name of the method."""
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    written = []
    for name, value in _mentioned(cls, message):
        own = actions.get(_FIELDS.get(name, name))
        if cls.name == "catekv" and own is not None:
            yield f"{own.option_strings[0]} {value}"
        else:
            written.append(f"{name}={value}")
    for dest in ("method", "methods"):
        # published scripts have a flag of that name that takes no options
        if written and dest in actions and "NAME[:" in (actions[dest].help or ""):
            yield f"--{dest} {cls.name}:{','.join(written)}"


def _mentioned(cls: type, message: str) -> Iterator[tuple[str, str]]:
    """Options of a dataclass that a message mentions, with values that they may have."""
    from catekv.methods.allocators import KINDS

    for item in fields(cls):
        # the options of an option: "budgets: headkv needs scores"
        inner = re.search(rf"\b{item.name}: (\w+)(?::| needs) (.*)", message)
        if inner and inner[1] in KINDS:
            yield item.name, inner[1]
            for name, value in _mentioned(KINDS[inner[1]], inner[2]):
                yield f"{item.name}.{name}", value
            return
        found = re.search(rf"\b{item.name}\b(?:='?([\w/]+))?", message)
        if found and item.name != "head_mask":
            yield item.name, found[1] or _example(cls, item)


def _example(cls: type, item: Any) -> str:
    """A value that the option may have: its default, or what kind it is of."""
    from catekv.methods.options import rules_of

    rule = rules_of(cls)[item.name]
    if isinstance(item.default, bool):
        return str(item.default).lower()
    if isinstance(item.default, int | float | str):
        return str(item.default)
    if rule.words:
        return rule.words[0]
    return "N" if re.search(r"\b(int|float)\b", str(item.type)) else "FILE"
