"""What the options of a method may be, said once where each is declared.

The kind comes from the annotation (``bool``, ``int``, ``float``, ``str``, or one of them
``| None``); :func:`method_option` adds a range, the allowed words, what a missing value would be
needed for, or a function that reads the value. A class that gives an inherited option another
default keeps its rule. :meth:`catekv.methods.base.Method.__post_init__` checks them.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from catekv.errors import UserError

#: What a field's metadata calls its rule.
RULE = "rule"


@dataclass(frozen=True)
class Rule:
    """What one option may be besides its kind; see :func:`method_option`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    odd: bool = False
    words: tuple[str, ...] = ()
    convert: Callable[[Any], Any] | None = None
    needs: str = ""

    @property
    def text(self) -> str:
        """The allowed values as they are printed; empty where everything of the kind is."""
        if self.words:
            return _listed(self.words)
        low, high = self._bounds
        if low and high:
            return f"in {low}, {high}"
        limits = {"at least": self.least, "above": self.above, "at most": self.most}
        said = ["odd"] if self.odd else []
        return " and ".join(
            [*said, *(f"{w} {limit}" for w, limit in limits.items() if limit is not None)]
        )

    @property
    def _bounds(self) -> tuple[str, str]:
        low = f"[{self.least}" if self.least is not None else f"({self.above}"
        high = f"{self.most}]" if self.most is not None else f"{self.below})"
        return "" if "None" in low else low, "" if "None" in high else high

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raise ``UserError`` unless a value of the right kind is among the allowed ones."""
        if self.words:
            if value not in self.words:
                raise UserError(f"{owner}: unknown {name} {value!r}; use {_listed(self.words)}")
            return
        if not self._holds(value):
            low, high = self._bounds
            wrong = f"is outside {low}, {high}" if low and high else f"must be {self.text}"
            raise UserError(f"{owner}: {name} {value} {wrong}")

    def _holds(self, value: Any) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and not (self.odd and value % 2 == 0)
        )


def method_option(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    odd: bool = False,
    words: tuple[str, ...] = (),
    convert: Callable[[Any], Any] | None = None,
    needs: str = "",
) -> Any:
    """A dataclass field with a rule.

    Args:
        default: of the option.
        least, most, above, below: limits; the first two belong to what is allowed.
        odd: even numbers are refused.
        words: the only values allowed.
        convert: reads the value as it is given (a path, rows, a dict); must take its own result.
        needs: what the owner lacks where the value is None, and how to give it.
    """
    return field(
        default=default,
        metadata={RULE: Rule(least, most, above, below, odd, tuple(words), convert, needs)},
    )


def rules_of(cls: type) -> dict[str, Rule]:
    """The rule of every option of a dataclass: its own, or that of the class it inherits from."""
    rules = {item.name: Rule() for item in fields(cls)}
    for base in reversed(cls.__mro__):
        for name, item in getattr(base, "__dataclass_fields__", {}).items():
            if name in rules:  # class variables are listed too
                rules[name] = item.metadata.get(RULE, rules[name])
    return rules


def check_options(owner: str, options: Any) -> None:
    """Check every option of a dataclass object against its kind and rule, and read it.

    An option that may also be something else (rows, a mask, any kind) is checked where a number is
    given; the rest is the business of its ``convert`` or of its class.

    Raises:
        UserError: the option, its value, and what is allowed.
    """
    for name, rule in rules_of(type(options)).items():
        value = getattr(options, name)
        if value is None and rule.needs:
            raise UserError(f"{owner} needs {rule.needs}")
        if _has_kind(owner, options, name, value):
            rule.check(owner, name, value)
        if isinstance(value, os.PathLike):
            assign(options, **{name: os.fspath(value)})
        if rule.convert is not None:
            assign(options, **{name: _converted(owner, name, rule.convert, value)})


def _converted(owner: str, name: str, convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except UserError as error:
        raise UserError(f"{owner}: {name}: {error}") from error


def assign(options: Any, **values: Any) -> None:
    """Set options of a frozen dataclass object that is being made."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def meanings_of(cls: type) -> dict[str, str]:
    """What the ``Args:`` of a class and of those it inherits from say about each option."""
    meanings: dict[str, str] = {}
    for base in cls.__mro__:
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, arguments = text.partition("Args:\n")
        arguments = re.split(r"\n(?=\S)", arguments)[0]
        for entry in re.split(r"\n {4}(?=\w)", "\n" + arguments):
            names, _, meaning = entry.partition(": ")
            for name in names.split(", "):
                # what refers to another class is said by a base where there is one
                if not meanings.get(name.strip(), "as in ").startswith("as in "):
                    continue
                meanings[name.strip()] = " ".join(meaning.split())
    return meanings


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
}


def _has_kind(owner: str, options: Any, name: str, value: Any) -> bool:
    """Whether a value is of a kind that its annotation names, and so has a range; False where the
    annotation allows something else. ``UserError`` where it allows neither."""
    annotation = type(options).__dataclass_fields__[name].type
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    parts = text.split(" | ")
    kinds = [part for part in parts if part in _KINDS]
    if any(_is_of(kind, value) for kind in kinds):
        return True
    others = set(parts) - set(kinds) - {"None"}
    # a number where there are numbers is meant as one; true and false are numbers too
    numeric = isinstance(value, Real) and not {"int", "float"}.isdisjoint(kinds)
    if (value is None and "None" in parts) or not kinds or (others and not numeric):
        return False
    said = " or ".join(_KINDS[kind] for kind in kinds)
    raise UserError(f"{owner}: {name} {value!r:.60} is not {said}")


def _is_of(kind: str, value: Any) -> bool:
    if kind == "str":
        return isinstance(value, str | os.PathLike)
    if isinstance(value, bool) or kind == "bool":
        return kind == "bool" and isinstance(value, bool)
    if kind == "int":
        return isinstance(value, Integral)
    return isinstance(value, Real) and math.isfinite(value)


def _listed(words: tuple[str, ...]) -> str:
    return " or ".join(words) if len(words) < 3 else ", ".join(words)
