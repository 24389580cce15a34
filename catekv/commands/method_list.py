"""What ``catekv methods`` prints: every method with its paper, options and needs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from catekv.evaluation.columns.specification import canonical_name
from catekv.methods import Method, available, method_class
from catekv.methods.allocators import KINDS
from catekv.methods.options import meanings_of, rules_of

#: What becomes of the entries that a method does not keep.
EFFECTS = {
    "frees": "frees memory",
    "moves": "moves to host memory",
    "skips": "skips reads, keeps memory",
    "keeps": "keeps everything",
}
#: Options of every method, listed after its own.
_COMMON = ("store",)
_WIDTH = 100
_INDENT = 20


def needs_of(cls: type[Method]) -> list[str]:
    """What prefill must hand to a method with its default options, in words."""
    # an instance with the defaults, for methods that cannot be made without a mask or scores
    needs = object.__new__(cls).needs
    words = [f"last {needs.window} queries"] if needs.window else []
    named = {
        "column_sums": "all queries",
        "hidden_states": "hidden states",
        "all_layers": "all layers at once",
        "rotation": "rotary angles",
    }
    return words + [word for name, word in named.items() if getattr(needs, name)]


def describe_method(name: str) -> dict[str, Any]:
    """Name, paper, effect, needs and options (defaults, allowed values, meanings) of one method as
    plain values.

    Raises:
        UserError: unknown name; the message lists those there are.
    """
    cls = method_class(canonical_name(name))
    own = [item for item in dataclasses.fields(cls) if item.name not in _COMMON]
    common = [item for item in dataclasses.fields(cls) if item.name in _COMMON]
    return {
        "name": cls.name,
        "paper": cls.paper,
        "summary": " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split()),
        "effect": cls.effect,
        "needs": needs_of(cls),
        "options": {item.name: item.default for item in own + common},
        "allowed": {name: rule.text for name, rule in rules_of(cls).items() if rule.text},
        "meanings": {
            name: text for name, text in meanings_of(cls).items() if name in rules_of(cls)
        },
        "recommended": dict(cls.recommended),
    }


def list_methods(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """:func:`describe_method` of these methods; of all without names."""
    return [describe_method(name) for name in names or available()]


def render_json(methods: Sequence[dict[str, Any]]) -> str:
    """The descriptions as JSON."""
    return json.dumps(methods, indent=2, default=str)


def render_table(methods: Sequence[dict[str, Any]]) -> str:
    """One block per method: what it does to memory, what it needs, paper, options."""
    lines = []
    for method in methods:
        head = f"{EFFECTS[method['effect']]}; needs {', '.join(method['needs']) or 'nothing'}"
        lines.append(f"{method['name']:<{_INDENT - 1}} {head}")
        options = " ".join(f"{name}={_word(value)}" for name, value in method["options"].items())
        for text in (method["paper"], options):
            if text:
                lines += textwrap.wrap(
                    text,
                    _WIDTH,
                    initial_indent=" " * _INDENT,
                    subsequent_indent=" " * _INDENT,
                    break_on_hyphens=False,
                )
    lines.append("\n`catekv methods NAME` explains a method's options.")
    return "\n".join(lines)


def render_details(method: dict[str, Any]) -> str:
    """Everything about one method."""
    cls = method_class(method["name"])
    lines = [
        f"{method['name']}: {method['paper'] or 'no paper'}",
        f"{EFFECTS[method['effect']]}; needs {', '.join(method['needs']) or 'nothing'}",
        "",
        (inspect.getdoc(cls) or "").partition("\n\nArgs:")[0],
        "",
        "options (preset=recommended sets what is said in brackets):",
    ]
    for name, value in method["options"].items():
        better = method["recommended"].get(name, value)
        note = "" if better == value else f"  [{_word(better)}]"
        allowed = method["allowed"].get(name, "")
        lines.append(f"  {name} = {_word(value)}{note}{f'  ({allowed})' if allowed else ''}")
        indent = " " * 6
        meaning = method["meanings"].get(name, "")
        lines += textwrap.wrap(meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    if "budgets" in method["options"]:
        lines += [
            "",
            f"budgets: {', '.join(KINDS)}, or a CSV, npz, JSON or YAML file; with options:",
        ]
        for kind, allocator in KINDS.items():
            options = [f"{f.name}={_word(f.default)}" for f in dataclasses.fields(allocator)]
            lines.append(f"  {kind:<8} {' '.join(options)}".rstrip())
        lines.append(
            f"for example {method['name']}:budgets=headkv,budgets.scores=FILE,budgets.beta=1.2"
        )
    return "\n".join(lines)


def _word(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
