"""InfiniteBench's numbers and code in the embedded model's vocabulary.

They keep the shape of the tasks only: that model was never taught to compare, to add or to follow
calls, so low scores say nothing about compression.
"""

from __future__ import annotations

from collections.abc import Sequence

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.infinitebench.drawn import (
    asked_kind,
    found,
    number_source,
    running_values,
)
from catekv.tasks.families.infinitebench.prompts import LETTERS
from catekv.tasks.small.parts import EXTRA, WORDING, small_parts, topped_up
from catekv.tasks.wording import spelling
from catekv.tasks.wording.hay import insert

_BEGUN = "the answer is"
_KINDS = {
    "largest": "tall",
    "smallest": "small",
    "second largest": "tall while not the most tall",
    "third largest": "tall after the tall and the tall",
    "median": "ordinary",
}
#: how many different names there are
_NAMES = 1400


def _numerals(values: Sequence[int]) -> str:
    return " ".join(f"{value:02d}" for value in values)


def math_find(request: BuildRequest, index: int) -> Plan:
    """A list of numerals."""
    kind, numbers = asked_kind(request, index), number_source(request, index)

    def draft(units: int, extra: int) -> Parts:
        label = found(kind, numbers.first(units))
        text = topped_up(_numerals(numbers.first(units)) + " .", extra)
        answer = f"{label:02d}" if isinstance(label, int) else str(label)
        question = f"ask all {_KINDS[kind]} ?"
        return small_parts(text, question, _BEGUN, answer, {"label": [label]})

    return Plan(draft, minimum=5, extra_limit=EXTRA)


def math_calc(request: BuildRequest, index: int) -> Plan:
    """Terms joined by ``and`` (more) and ``but`` (less)."""
    first, values = running_values(request, index)

    def draft(units: int, extra: int) -> Parts:
        label = values.first(units)
        terms = [
            f"{'and' if value > last else 'but'} {abs(value - last):02d}"
            for last, value in zip([first, *label], label, strict=False)
        ]
        text = topped_up(" ".join([f"{first:02d}", *terms, "."]), extra)
        answer, allowance = _numerals(label), len(label) + 8
        scoring = {"label": label}
        return small_parts(text, "trace all ?", "all", answer, scoring, max_new_tokens=allowance)

    return Plan(draft, minimum=3, extra_limit=EXTRA)


def code_run(request: BuildRequest, index: int) -> Plan:
    """Names that hand a number on, each adding to it."""
    calls: int = request.options.calls
    random = request.random(index, "functions")
    names = WORDING.variables(_NAMES, random)
    argument = random.randint(1, 9)
    steps = Growing(lambda source: source.randint(1, 9), request.random(index, "steps"))
    places = Growing(lambda source: source.random(), request.random(index, "places"))
    result = argument + sum(steps.first(calls))
    # names come twice in a text of more than 1400 functions, those of the answer never
    own, others = names[:calls], names[calls:]

    def function(number: int) -> str:
        return own[number] if number < calls else others[number % len(others)]

    def draft(units: int, extra: int) -> Parts:
        count = calls + units
        lines = []
        for number, step in enumerate(steps.first(count)):
            last = number % calls == calls - 1 or number == count - 1
            target = "answer" if last else function(number + 1)
            lines.append(f"{function(number)} and {step:02d} pass {target} .")
        ranked = sorted(zip(places.first(count), lines, strict=True))
        text = topped_up("\n".join(line for _, line in ranked), extra)
        question = f"ask {names[0]} with {argument:02d} ?"
        return small_parts(text, question, _BEGUN, f"{result:02d}", {"label": [result]})

    return Plan(draft, extra_limit=EXTRA)


def code_debug(request: BuildRequest, index: int) -> Plan:
    """Assignments that all take the value of one name, but for one that takes a stranger's."""
    random = request.random(index, "functions")
    source, stranger, broken, *names = WORDING.variables(_NAMES, random)
    suspects = [broken, *names[:3]]
    hidden = [
        (random.random(), f"pass {stranger if name == broken else source} {name} .")
        for name in suspects
    ]
    others = names[3:]
    random.shuffle(suspects)
    first = f"pass {WORDING.variable_value(random)} {source} ."
    letters = dict(zip(suspects, LETTERS, strict=True))
    scoring = {
        "label": [broken, letters[broken]],
        "spelling": spelling.named({name: f"{letter}. {name}" for name, letter in letters.items()}),
    }
    question = f"ask {' '.join(suspects)} ?"

    def draft(units: int, extra: int) -> Parts:
        lines = [f"pass {source} {others[unit % len(others)]} ." for unit in range(units)]
        text = "\n".join([first, *insert(lines, hidden)])
        return small_parts(text, question, _BEGUN, broken, scoring)

    return Plan(draft)
