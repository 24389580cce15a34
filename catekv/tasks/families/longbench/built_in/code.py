"""Generated Python source whose next line follows from what stands before it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from catekv.tasks.drawing import words
from catekv.tasks.drawing.essay import vocabulary
from catekv.tasks.families.longbench.built_in.base import Draws, RowPlan
from catekv.tasks.families.longbench.rows import LongRow

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts


def _identifier(random: Random) -> str:
    """Two words joined by an underscore."""
    return f"{random.choice(vocabulary('nouns_things'))}_{words.common_word(random)}"


class _Names:
    """Different identifiers in a drawn order."""

    def __init__(self, random: Random) -> None:
        self._random, self._seen = random, dict[str, None]()

    def first(self, count: int) -> list[str]:
        while len(self._seen) < count:
            self._seen[_identifier(self._random)] = None
        return list(self._seen)[:count]


class ClassPlan(RowPlan):
    """A class with one setter per field; the last breaks off before its assignment (lcc).

    The unit is a setter.
    """

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        self._names = _Names(draws.random("fields"))
        self._class = words.noun(draws.random("class")).capitalize()
        self.minimum = 2

    def row(self, units: int) -> LongRow:
        *complete, last = self._names.first(units)
        head = f'class {self._class}Record:\n    """Checks every field when it is set."""\n'
        setters = [self._opening(name) + self._assignment(name) + "\n" for name in complete]
        text = "\n".join([head, *setters, self._opening(last)]).rstrip("\n")
        return self.made(text, "", [self._assignment(last)])

    @staticmethod
    def _opening(name: str) -> str:
        return f"    def set_{name}(self, value):\n        self.check('{name}', value)\n"

    @staticmethod
    def _assignment(name: str) -> str:
        return f"        self.{name} = value"


class ProjectPlan(RowPlan):
    """Functions of another file, and a file that calls them in turn (repobench-p).

    The next line is a call whose arguments only the other file tells. The unit is a function.
    """

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        self._names = _Names(draws.random("functions"))
        self._arguments = draws.random("arguments")
        self._signatures: dict[str, str] = {}
        self._module = words.noun(draws.random("module"))
        self._place = draws.random("asked").random()
        self.minimum = 3

    def row(self, units: int) -> LongRow:
        names = self._names.first(units)
        for name in names:
            if name not in self._signatures:
                count = self._arguments.randint(1, 3)
                drawn = [words.common_word(self._arguments) for _ in range(count)]
                self._signatures[name] = ", ".join(dict.fromkeys(drawn))
        shown, asked = names[0], names[1 + int(self._place * (units - 1))]
        library = "\n\n".join(
            f"def {name}({self._signatures[name]}):\n    return [{self._signatures[name]}]"
            for name in names
        )
        context = f"library/{self._module}.py\n{library}\n\n"
        code = "\n".join(
            (
                "main.py",
                f"from library import {self._module}",
                "",
                "",
                f"def run_{shown}(values):",
                self._call(shown),
                "",
                "",
                f"def run_{asked}(values):",
            )
        )
        return self.made(context, code, [self._call(asked)])

    def _call(self, name: str) -> str:
        arguments = [f"values.{part}" for part in self._signatures[name].split(", ")]
        return f"    return {self._module}.{name}({', '.join(arguments)})"
