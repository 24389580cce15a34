"""Code of any length with a description of some of its functions, for RepoQA's sessions.

A function filters numbers, changes each and folds them together. Its description says the same in
words that do not occur in the code, so that no search for words finds it.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing import words
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.scbench.drawn import Drawn, kv_lines, question, spread
from catekv.tasks.families.scbench.rows import ASK
from catekv.tasks.families.scbench.session import Turn

#: tokens of the answer: a function has about a hundred
_NEW_TOKENS = 256
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
#: what the description says, the start, the step and the result; a: the accumulator, t: the term
_FOLDS = (
    ("Adds up {what}", "0", "{a} += {t}", "{a}"),
    ("Takes the biggest of {what}", "-1", "{a} = max({a}, {t})", "{a}"),
    ("Takes the smallest of {what}", "10 ** 9", "{a} = min({a}, {t})", "{a}"),
    ("Says how many distinct results come from {what}", "set()", "{a}.add({t})", "len({a})"),
    ("Lists, last one first, {what}", "[]", "{a}.insert(0, {t})", "{a}"),
    ("Puts side by side {what}", "[]", "{a}.append({t})", "{a}"),
)
_TERMS = (
    ("each number times {m} plus {n}", "{x} * {m} + {n}"),
    ("the square of each number less {m}", "{x} * {x} - {m}"),
    ("each number divided by {m}, rounded down, plus {n}", "{x} // {m} + {n}"),
    ("what each number leaves over when divided by {m}, times {n}", "{x} % {m} * {n}"),
    ("the gap between each number, taken {n} times, plus {m}", "abs({x}) * {n} + {m}"),
)
_FILTERS = (
    ("skipping those up to {k}", "{x} > {k}"),
    ("skipping those from {k} upwards", "{x} < {k}"),
    ("skipping those that {k} divides evenly", "{x} % {k}"),
    ("using just those that {k} divides evenly", "{x} % {k} == 0"),
)


class Function(NamedTuple):
    """A function of the drawn code."""

    name: str
    source: str
    description: str


def spelled(number: int) -> str:
    """A number from 0 to 99 in words."""
    if number < len(_ONES):
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def function(random: Random) -> Function:
    """A function of seven lines."""
    name, values, item, result = words.distinct(lambda: words.noun(random), 4, words.NOUNS, "names")
    (fold, start, step, end), (term, formula), (kept, condition) = (
        random.choice(_FOLDS),
        random.choice(_TERMS),
        random.choice(_FILTERS),
    )
    numbers = dict(zip("kmn", random.sample(range(3, 100), 3), strict=True))
    digits = {letter: str(value) for letter, value in numbers.items()}
    said = {letter: spelled(value) for letter, value in numbers.items()}
    changed = step.format(a=result, t=formula.format(x=item, **digits))
    source = (
        f"def {name}({values}):\n"
        f"    {result} = {start}\n"
        f"    for {item} in {values}:\n"
        f"        if {condition.format(x=item, **digits)}:\n"
        f"            {changed}\n"
        f"    return {end.format(a=result)}\n"
    )
    description = f"{fold.format(what=term.format(**said))}, {kept.format(**said)}."
    return Function(name, source, description)


def _functions(request: BuildRequest, number: int, asked: int) -> tuple[list[Function], Growing]:
    """Functions that are asked for, of different descriptions, and endless others."""
    random = request.random(number, "asked functions")
    found = words.distinct(lambda: function(random), asked, words.NOUNS, "functions")
    return found, Growing(function, request.random(number, "other functions"))


def _turn(wanted: Function, functions: list[Function]) -> Turn:
    sources = {each.name: each.source for each in functions}
    return Turn(
        ASK["repoqa"].format(wanted.description),
        wanted.source,
        _NEW_TOKENS,
        {"rule": "repoqa", "label": wanted.name, "functions": sources},
        outputs=(wanted.source,),
    )


def _code(functions: list[Function]) -> str:
    return "\n\n".join(each.source for each in functions) + "\n"


def repoqa(request: BuildRequest, number: int, turns: int) -> Drawn:
    """One function a turn, by its description."""
    asked, others = _functions(request, number, turns)

    def draw(units: int) -> tuple[str, list[Turn]]:
        functions = spread(_without(others.first(units), asked), asked)
        return _code(functions), [_turn(wanted, functions) for wanted in asked]

    return Drawn(draw, 0)


def repoqa_and_kv(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Functions and a JSON object in one context; turns ask for one and the other in turn."""
    asked, others = _functions(request, number, (turns + 1) // 2)
    random = request.random(number, "asked pairs")
    pairs = [(words.uuid(random), words.uuid(random)) for _ in range(turns // 2)]
    more = Growing(lambda draw: (words.uuid(draw), words.uuid(draw)), request.random(number, "kv"))

    def draw(units: int) -> tuple[str, list[Turn]]:
        functions = spread(_without(others.first(units), asked), asked)
        lines = kv_lines(spread(more.first(units), pairs) if pairs else more.first(units))
        questions = []
        for place in range(turns):
            half, second = divmod(place, 2)
            if second:
                questions.append(question("kv", *pairs[half], pairs[half][1]))
            else:
                questions.append(_turn(asked[half], functions))
        return f"{_code(functions)}\n{lines}", questions

    return Drawn(draw, 0)


def _without(functions: list[Function], asked: list[Function]) -> list[Function]:
    """Those that neither share a name with an asked one nor do what it does."""
    names = {each.name for each in asked}
    meanings = {each.description for each in asked}
    return [f for f in functions if f.name not in names and f.description not in meanings]
