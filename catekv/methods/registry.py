"""Methods by name: registered by their modules, created from options."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from catekv.errors import UserError
from catekv.methods.base import Method

_REGISTRY: dict[str, type[Method]] = {}


MethodType = TypeVar("MethodType", bound=type[Method])


def register(cls: MethodType) -> MethodType:
    """Class decorator: make a method known under its ``name``."""
    if not cls.name or cls.name in _REGISTRY:
        raise ValueError(f"method name {cls.name!r} is empty or taken")
    _REGISTRY[cls.name] = cls
    return cls


def available() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """The class registered under ``name`` (any case); ``UserError`` lists what exists."""
    key = name.lower()
    if key not in _REGISTRY:
        raise UserError(
            f"unknown method {name!r}{nearest(key, available())}; available: "
            f"{', '.join(available())}"
        )
    return _REGISTRY[key]


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
