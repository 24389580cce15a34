"""Fields of a dataclass that are options of a command line; ``catekv.commands.schema`` reads them.

A field's annotation says what its flag takes, its metadata how it reads:

``help``: for ``--help``; ``{default}`` stands for the default.
``flag``, ``also``: the flag where it is not the field's name, and further names that are read.
``positional``: no flag but a place; optional where there is a default.
``metavar``: what stands for the value in ``--help``.
``choices``: the words that are taken; a mapping says which value each word stands for.
``least``, ``most``: range of a number, or of each number of a list (whole ones: ``least``).
``repeat``: a list is given by repeating the flag, one value each; else with spaces or commas.
``verbatim``: the words of a list are taken as they are, commas included.

Without a default an option is required. A ``bool`` is a switch, or ``--x/--no-x`` where it is on
by default; a ``Mapping`` collects repeated NAME=VALUE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from os.path import realpath
from typing import Any

from catekv.errors import UserError

#: The default of an option that has none and must be given.
REQUIRED: Any = MISSING

#: Layers of a model, and KV heads of a layer: a table of both fits the memory.
MOST_LAYERS = MOST_HEADS = 2**12
#: Samples of a task: their texts stand in memory together.
MOST_SAMPLES = 2**16
#: Passes over the texts of a training.
MOST_EPOCHS = 10_000
#: Learning rate: a larger step leaves the range of the weights' numbers.
MOST_RATE = 1e30
#: Units of a layer of a trained network.
MOST_UNITS = 2**16
#: Tokens of a prompt or an answer, all together.
MOST_TOKENS = 2**30
#: Range of what is counted in tokens.
COUNT = {"least": 1, "most": MOST_TOKENS}


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A field with a default and the help text of its flag."""
    metadata["help"] = text
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def refuse_twice(flag: str, values: Sequence[object]) -> None:
    """Raise ``UserError`` for a value that a list holds twice.

    What is measured twice would count as two samples and make intervals narrower, and what is
    learned from would be held out too.
    """
    for value, count in Counter(values).items():
        if count > 1:
            raise UserError(f"{flag} holds {value} twice; give it once")


def refuse_unheeded(asked: Any, names: Sequence[str], why: str) -> None:
    """Raise ``UserError`` for options of a dataclass that nothing would read, unless they are their
    defaults."""
    for item in fields(asked):
        if item.name not in names:
            continue
        usual = item.default if item.default_factory is MISSING else item.default_factory()
        if getattr(asked, item.name) != usual:
            flag = item.metadata.get("flag", "--" + item.name.replace("_", "-"))
            raise UserError(f"{why}; leave out {flag}")


def refuse_source_twice(flag: str, sources: Sequence[str]) -> None:
    """:func:`refuse_twice` for names and files, however a file is spelt."""
    refuse_twice(flag, sources)
    refuse_twice(flag, [realpath(source) for source in sources])
