"""Options that methods cannot be made without: a test of all methods need not name them."""

from __future__ import annotations

from typing import Any

from catekv import methods
from catekv.methods.options import rules_of
from catekv.models.shape import ModelShape

#: stand for what is made for a model first, though their kind does not say so
_MADE_FIRST = {"head_mask", "untrained"}


def required_options(name: str, shape: ModelShape) -> dict[str, Any]:
    """Of the options that a method shows itself with, those that must be given."""
    kind = methods.method_class(name)
    needed = {option for option, rule in rules_of(kind).items() if rule.needs} | _MADE_FIRST
    assert kind.example is not None
    shown = kind.example.options("small", shape)
    return {option: value for option, value in shown.items() if option in needed}
