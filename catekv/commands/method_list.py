"""What ``catekv methods`` prints: a line per method, everything about some, or tables."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from catekv.evaluation.columns.specification import canonical_name
from catekv.evaluation.tables import markdown_table
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
#: Columns of a terminal.
_WIDTH = 80
#: Of them, those left for a formula in the table.
_FORMULA = 34


def needs_of(cls: type[Method]) -> list[str]:
    """What prefill must hand to a method with its default options, in words."""
    # an instance with the defaults, for methods that cannot be made without a mask or scores
    needs = object.__new__(cls).needs
    words = [f"last {needs.window} queries"] if needs.window else []
    if needs.window == 1:
        words = ["last query"]
    named = {
        "column_sums": "all queries",
        "query_moments": "all queries",
        "hidden_states": "hidden states",
        "all_layers": "all layers at once",
        "rotation": "rotary angles",
        "output_projection": "the output projection",
        "attention_inputs": "what attention reads",
        "repeats": "the prompt repeated by the model",
    }
    return words + [word for name, word in named.items() if getattr(needs, name)]


def loads_of(cls: type[Method]) -> list[str]:
    """What a method has to be given that is made for the model beforehand, in words."""
    words = ["a head mask"] if "head_mask" in rules_of(cls) else []
    words += ["trained predictors"] if "predictor" in rules_of(cls) else []
    said = [rule.needs.partition(";")[0] for rule in rules_of(cls).values() if rule.needs]
    return words + [text.replace("of the model's", "of") for text in said]


def describe_method(name: str) -> dict[str, Any]:
    """Name, paper, effect, needs, options (defaults, allowed values, meanings) and memory formula
    of one method as plain values.

    Raises:
        UserError: unknown name; the message lists those there are.
    """
    cls = method_class(canonical_name(name))
    formula = cls.memory_formula
    own = [item for item in dataclasses.fields(cls) if item.name not in _COMMON]
    common = [item for item in dataclasses.fields(cls) if item.name in _COMMON]
    return {
        "name": cls.name,
        "paper": cls.paper,
        "summary": " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split()),
        "effect": cls.effect,
        "needs": needs_of(cls),
        "loads": loads_of(cls),
        "options": {item.name: item.default for item in own + common},
        "allowed": {name: rule.text for name, rule in rules_of(cls).items() if rule.text},
        "meanings": {
            name: text for name, text in meanings_of(cls).items() if name in rules_of(cls)
        },
        "recommended": dict(cls.recommended),
        "memory": [formula.kept, formula.stored, formula.read, formula.besides] if formula else [],
    }


def list_methods(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """:func:`describe_method` of these methods; of all without names."""
    return [describe_method(name) for name in names or available()]


def render_json(methods: Sequence[dict[str, Any]]) -> str:
    """The descriptions as JSON."""
    return json.dumps(methods, indent=2, default=str)


def render_table(methods: Sequence[dict[str, Any]]) -> str:
    """One line per method: name, what must be made for the model first, what it frees."""
    rows = [("method", "made first", "frees all but, of T tokens a head")]
    rows += [
        (method["name"], ", ".join(method["loads"]) or "nothing", _freed(method))
        for method in methods
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in rows]
    advice = (
        "`catekv methods NAME` explains a method's options, --details all methods. A head mask "
        "is made by `catekv calibrate`, scores by `catekv cokv`, curves by `catekv heads`, "
        "predictors by `catekv atskv` and `catekv kvzap`, query statistics by "
        "`catekv triattention`."
    )
    return "\n".join([*lines, "", *textwrap.wrap(advice, _WIDTH)])


def _freed(method: Mapping[str, Any]) -> str:
    """What stays of memory, as short as the line asks for; in brackets where nothing is freed."""
    if method["effect"] != "frees" or not method["memory"]:
        return f"({EFFECTS[method['effect']]})"
    kept = str(method["memory"][0])
    return kept if len(kept) <= _FORMULA else kept.replace(" ", "")


def _needs(method: Mapping[str, Any]) -> str:
    return ", ".join([*method["needs"], *method["loads"]]) or "nothing"


def render_markdown(methods: Sequence[dict[str, Any]]) -> str:
    """The tables of docs/methods.md: what each method does, and its memory and traffic."""
    rows = [
        [f"`{method['name']}`", _as_markdown(method["summary"]), method["paper"] or "-"]
        for method in methods
    ]
    formulas = [
        [f"`{method['name']}`", *(f"`{text}`" if text else "" for text in method["memory"])]
        for method in methods
        if method["memory"]
    ]
    return "\n\n".join(
        [
            markdown_table(["name", "does", "paper"], rows, left=range(3)),
            markdown_table(
                ["method", "kept", "stored bytes", "entries read", "read besides"],
                formulas,
                left=range(5),
            ),
        ]
    )


def _as_markdown(text: str) -> str:
    """A docstring's markup as Markdown's, on one line of a table."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def render_details(method: dict[str, Any]) -> str:
    """Everything about one method."""
    lines = [
        *_filled(f"{method['name']}: {method['paper'] or 'no paper'}"),
        f"{EFFECTS[method['effect']]}; needs {_needs(method)}",
    ]
    if method["memory"]:
        lines.append(f"keeps of T tokens, a head: {method['memory'][0]}")
    text = (inspect.getdoc(method_class(method["name"])) or "").partition("\n\nArgs:")[0]
    for paragraph in text.split("\n\n"):
        lines += ["", *_filled(paragraph)]
    example = f"{method['name']}:{_example(method)}"
    said = f"options, written as {example} (preset=recommended sets what is in brackets):"
    lines += ["", *_filled(said), *_options(method)]
    if "budgets" in method["options"]:
        said = f"budgets: {', '.join(KINDS)}, or a CSV, npz, JSON or YAML file; with options:"
        lines += ["", *_filled(said)]
        for kind, allocator in KINDS.items():
            options = [f"{f.name}={_word(f.default)}" for f in dataclasses.fields(allocator)]
            lines += _filled(f"{kind:<8} {' '.join(options)}".rstrip(), 2, 11)
        lines += [
            "for example",
            f"  {method['name']}:budgets=headkv,budgets.scores=FILE,budgets.beta=1.2",
        ]
    return "\n".join(lines)


def _options(method: Mapping[str, Any]) -> Iterator[str]:
    """Every option with its default, and what it means; neighbours of one meaning share it."""
    meanings = method["meanings"]
    names = list(method["options"])
    for name, following in zip(names, [*names[1:], None], strict=True):
        value = method["options"][name]
        better = method["recommended"].get(name, value)
        note = "" if better == value else f"  [{_word(better)}]"
        allowed = method["allowed"].get(name, "")
        yield f"  {name} = {_word(value)}{note}{f'  ({allowed})' if allowed else ''}"
        meaning = meanings.get(name, "")
        if name == "head_mask":
            meaning = "the heads that keep everything: give a folder or file with --mask."
        if meaning != meanings.get(following):
            yield from _filled(meaning, 6)


def _example(method: Mapping[str, Any]) -> str:
    """Options as they are written behind the name of a method."""
    said = [
        f"{name}={_word(value)}"
        for name, value in method["options"].items()
        if isinstance(value, int | float | str)
    ]
    return ",".join(said[:2])


def _filled(text: str, indent: int = 0, hanging: int | None = None) -> list[str]:
    """Lines for a terminal, without a docstring's markup."""
    text = re.sub(r" \(:\w+:`[^`]*`\)", "", text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "")
    following = " " * (indent if hanging is None else hanging)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=" " * indent, subsequent_indent=following,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _word(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
