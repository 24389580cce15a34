"""Methods by name: registered by their modules, created from options.

The modules of this package register when it is imported. Installed packages may bring further ones:
each entry point of the group ``catekv.methods`` names a module, imported when a method is first
asked for.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from catekv.errors import UserError
from catekv.methods.base import Method

#: The group of entry points by which installed packages name modules with methods.
ENTRY_POINTS = "catekv.methods"

_REGISTRY: dict[str, type[Method]] = {}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


MethodType = TypeVar("MethodType", bound=type[Method])


def register(cls: MethodType) -> MethodType:
    """Class decorator: make a method known under its ``name``.

    Raises:
        UserError: what the class lacks, and how to add it; or a name that another method has.
    """
    here = f"method class {cls.__qualname__}"
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"{here}: derive it from catekv.methods.Method")
    if "__dataclass_params__" not in vars(cls):
        raise UserError(f"{here}: write @dataclass(frozen=True) below @register")
    name = vars(cls).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{here} has no name; add a line like name = 'my_method' to the class (small letters, "
            "digits and _)"
        )
    chooses = ("select_observed", "select_layers", "select_padded")
    if all(getattr(cls, function) is getattr(Method, function) for function in chooses):
        raise UserError(
            f"method {name!r} chooses nothing; add select_observed(self, observed), which returns "
            "Selection(keep) with keep bool [batch, KV heads, tokens]"
        )
    other = _REGISTRY.get(name)
    # the same class again: a notebook's cell was run once more
    if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"method name {name!r} is taken by {other.__module__}; choose another name")
    _REGISTRY[name] = cls
    return cls


def available() -> list[str]:
    """Names of all methods, sorted."""
    _installed.load()
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """The class registered under ``name`` (any case); ``UserError`` lists what exists."""
    key = name.lower()
    if key not in available():
        raise unknown(name)
    return _REGISTRY[key]


def unknown(name: str) -> UserError:
    """The error for a name that no method has."""
    reason = _installed.broken.get(name)
    if reason is not None:
        return UserError(f"method {name!r}: {reason}")
    return UserError(
        f"unknown method {name!r}{nearest(name.lower(), available())}; available: "
        f"{', '.join(available())}; one of your own: --plugin FILE, or import its module"
    )


class _Installed:
    """Methods of other packages, imported once."""

    def __init__(self) -> None:
        self.asked = False
        self.broken: dict[str, str] = {}

    def load(self) -> None:
        if self.asked:
            return
        self.asked = True  # first of all: what is imported may ask for methods itself
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
            try:
                point.load()
            except Exception as error:
                # the other methods work: what another package breaks is left out, aloud
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                origin = point.dist.name if point.dist else "an installed package"
                self.broken[point.name] = (
                    f"the entry point {point.name} = {point.value} of {origin} cannot be loaded "
                    f"({reason}); repair or uninstall that package"
                )
                warnings.warn(self.broken[point.name], stacklevel=3)


_installed = _Installed()


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean ...?)`` if a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def create(name: str, *, preset: str = "published", **options: Any) -> Method:
    """Make a method by name.

    Args:
        name: one of :func:`available`.
        preset: ``published`` (the system as it was published) or ``recommended``.
        options: fields of the method; they override the preset.

    Raises:
        UserError: unknown name, preset or option (the valid ones are listed), or a bad value.
    """
    cls = method_class(name)
    if preset not in ("published", "recommended"):
        raise UserError(f"unknown preset {preset!r}; use 'published' or 'recommended'")
    # what all methods share comes last
    valid = [item.name for item in sorted(fields(cls), key=lambda item: bool(item.kw_only))]
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise UserError(
            f"method {cls.name!r} has no option {', '.join(map(repr, unknown))}"
            f"{nearest(unknown[0], valid)}; "
            f"valid options: {', '.join(valid) or 'none'}"
        )
    sizes = [name for name in cls.size_options if options.get(name) is not None]
    if isinstance(options.get("keep"), int | float) and sizes:
        raise UserError(
            f"method {cls.name!r}: keep and {sizes[0]} both say how much is kept; give one of them"
        )
    base = dict(cls.recommended) if preset == "recommended" else {}
    try:
        return cls(**{**base, **options})
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        if not options:
            raise
        # a text where a number belongs: comparing or converting it failed
        given = ", ".join(f"{option}={value!r:.60}" for option, value in options.items())
        raise UserError(
            f"method {cls.name!r}: one of {given} has a value of the wrong kind ({error})"
        ) from error


def from_dict(content: dict[str, Any]) -> Method:
    """The method that :meth:`Method.to_dict` described; ``UserError`` on unknown names."""
    options = {key: value for key, value in content.items() if key != "name"}
    return create(content["name"], **options)
