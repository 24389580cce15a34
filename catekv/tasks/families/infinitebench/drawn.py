"""The six InfiniteBench tasks that are drawn anew, in English, at any length.

Each function makes one :class:`Plan`; its units are filler sentences, pairs, numbers, terms or
functions, and the text of a sample keeps its beginning while it grows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from statistics import median

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing import words
from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.infinitebench.options import KINDS, swept_depth
from catekv.tasks.families.infinitebench.prompts import Item, parts
from catekv.tasks.wording.english import EnglishWording
from catekv.tasks.wording.hay import Filler, insert

#: how many five-digit numbers there are; a stride without common divisor visits all of them
_FIVE_DIGITS = 90_000
_STRIDE = 38_197
_EXTRA = 400
_FILLER = Filler(EnglishWording.filler_line)


def _five_digits(start: int, number: int) -> int:
    return 10_000 + (start + _STRIDE * number) % _FIVE_DIGITS


def own_number(request: BuildRequest, index: int) -> str:
    """Five digits that no other of the first 90,000 samples of the request has."""
    start = generator(request.stream, request.seed, request.task.name, request.length, "numbers")
    return str(_five_digits(start.randrange(_FIVE_DIGITS), index))


def repeated_digits(random: Random) -> str:
    """Ten digits, five of which repeat their neighbour on the left."""
    repeats = set(random.sample(range(1, 10), 5))
    digits = [random.randrange(1, 10)]
    for place in range(1, 10):
        others = [digit for digit in range(10) if digit != digits[-1]]
        digits.append(digits[-1] if place in repeats else random.choice(others))
    return "".join(map(str, digits))


def _with_filler(text: str, extra: int) -> str:
    """The text, below a line of so many words of filler."""
    return f"{_FILLER.words(extra)}\n\n{text}" if extra else text


def _hidden(request: BuildRequest, index: int, task: str, needle: str, answer: str) -> Plan:
    """A sentence in filler that says nothing."""
    depth = swept_depth(request.options.depth, index)
    asked = {"passkey": "What is the secret number?", "number_string": "What are the digits?"}

    def draft(units: int, extra: int) -> Parts:
        lines = _FILLER.lines(units)
        if extra:
            lines.append(_FILLER.words(extra))
        text = "\n".join(insert(lines, [(depth, needle)]))
        return parts(task, Item(text, asked[task], [answer], (answer,)), mark=needle)

    return Plan(draft, extra_limit=_EXTRA)


def passkey(request: BuildRequest, index: int) -> Plan:
    """Five digits in filler; every sample has digits and a depth of its own."""
    key = own_number(request, index)
    needle = f"The secret number is {key}. Keep it in mind: {key} is the secret number."
    return _hidden(request, index, "passkey", needle, key)


def number_string(request: BuildRequest, index: int) -> Plan:
    """Ten digits in filler, five of them repeats."""
    number = repeated_digits(request.random(index, "number"))
    needle = f"The row of digits is {number}. Keep it in mind: {number} is the row of digits."
    return _hidden(request, index, "number_string", needle, number)


def kv_retrieval(request: BuildRequest, index: int) -> Plan:
    """A JSON object of identifiers; one value is asked for."""
    depth = swept_depth(request.options.depth, index)
    random = request.random(index, "asked pair")
    key, value = words.uuid(random), words.uuid(random)

    def pair(random: Random) -> str:
        return f'"{words.uuid(random)}": "{words.uuid(random)}"'

    others = Growing(pair, request.random(index, "other pairs"))
    wanted = f'"{key}": "{value}"'

    def draft(units: int, extra: int) -> Parts:
        text = "{" + ", ".join(insert(others.first(units), [(depth, wanted)])) + "}"
        item = Item(_with_filler(text, extra), f'Key: "{key}"', value, (value,))
        return parts("kv_retrieval", item, mark=wanted)

    return Plan(draft, extra_limit=_EXTRA)


def found(kind: str, numbers: list[int]) -> int | float:
    """What ``math_find`` asks for; equal numbers count once, but not for the median.

    Of an even count the median is the mean of the two in the middle, an integer if it is whole.
    """
    if kind == "median":
        middle = median(numbers)
        return int(middle) if middle == int(middle) else float(middle)
    ordered = sorted(set(numbers), reverse=kind != "smallest")
    place = {"second largest": 1, "third largest": 2}.get(kind, 0)
    return ordered[min(place, len(ordered) - 1)]


def asked_kind(request: BuildRequest, index: int) -> str:
    """What sample ``index`` of ``math_find`` asks for."""
    kind: str = request.options.kind
    return KINDS[index % len(KINDS)] if kind == "all" else kind


def number_source(request: BuildRequest, index: int) -> Growing:
    """Numbers between bounds of the sample's own, so that the extremes differ between samples."""
    bounds = request.random(index, "bounds")
    low, high = bounds.randint(0, 40), bounds.randint(60, 99)
    return Growing(lambda random: random.randint(low, high), request.random(index, "numbers"))


def math_find(request: BuildRequest, index: int) -> Plan:
    """A long list of numbers from 0 to 99; one statistic of it is asked for."""
    kind, numbers = asked_kind(request, index), number_source(request, index)
    asked = f"What is the {kind} number of the list?"
    if kind != "median":
        asked += " Equal numbers count once."

    def draft(units: int, extra: int) -> Parts:
        chosen = numbers.first(units)
        label = found(kind, chosen)
        item = Item(_with_filler(json.dumps(chosen), extra), asked, [label], (str(label),))
        return parts("math_find", item, metadata={"kind": kind})

    return Plan(draft, minimum=5, extra_limit=_EXTRA)


def running_values(request: BuildRequest, index: int) -> tuple[int, Growing]:
    """The first term of ``math_calc``, and all values after it, which stay from 0 to 99."""
    first = value = request.random(index, "first term").randint(10, 89)

    def following(random: Random) -> int:
        nonlocal value
        step = random.randint(1, 9)
        signs = [sign for sign in (1, -1) if 0 <= value + sign * step <= 99]
        value += random.choice(signs) * step
        return value

    return first, Growing(following, request.random(index, "terms"))


def math_calc(request: BuildRequest, index: int) -> Plan:
    """A long sum whose value after every term is to be written down.

    The answer is as long as the sum, so its allowance follows from its own tokens.
    """
    first, values = running_values(request, index)

    def draft(units: int, extra: int) -> Parts:
        label = values.first(units)
        terms = [
            f"{'+' if value > last else '-'} {abs(value - last)}"
            for last, value in zip([first, *label], label, strict=False)
        ]
        answer = ", ".join(map(str, label))
        text = _with_filler(" ".join([str(first), *terms]), extra)
        allowance = len(request.format.tokens(answer)) + 8
        return parts("math_calc", Item(text, "", label, (answer,)), max_new_tokens=allowance)

    return Plan(draft, minimum=3, extra_limit=_EXTRA)


def code_run(request: BuildRequest, index: int) -> Plan:
    """Small functions that call each other; the result of one call is asked for.

    The others form chains of the same length; the last one is cut where the text ends.
    """
    calls: int = request.options.calls
    random = request.random(index, "functions")
    start, argument = random.randrange(_FIVE_DIGITS), random.randint(-9, 9)

    def function(number: int) -> str:
        return f"func_{_five_digits(start, number)}"

    def step(random: Random) -> int:
        return random.choice([value for value in range(-9, 10) if value])

    def code(number: int, change: int, last: bool) -> str:
        called = "x" if last else f"{function(number + 1)}(x)"
        sign = "+" if change > 0 else "-"
        return f"def {function(number)}(x):\n    return {called} {sign} {abs(change)}\n"

    steps = [step(random) for _ in range(calls)]
    chain = [
        (random.random(), code(number, change, number == calls - 1))
        for number, change in enumerate(steps)
    ]
    result = argument + sum(steps)
    others = Growing(
        lambda source: (source.random(), step(source)), request.random(index, "others")
    )

    def draft(units: int, extra: int) -> Parts:
        ranked = sorted(
            (rank, code(calls + unit, change, unit % calls == calls - 1 or unit == units - 1))
            for unit, (rank, change) in enumerate(others.first(units))
        )
        text = "\n".join(insert([text for _, text in ranked], chain))
        if extra:
            text = f"# {_FILLER.words(extra)}\n\n{text}"
        item = Item(text, f"{function(0)}({argument})", [result], (str(result),))
        return parts("code_run", item, metadata={"calls": calls})

    return Plan(draft, extra_limit=_EXTRA)


#: by the name without ``infinitebench/``
PLANS: dict[str, Callable[[BuildRequest, int], Plan]] = {
    "passkey": passkey,
    "number_string": number_string,
    "kv_retrieval": kv_retrieval,
    "math_find": math_find,
    "math_calc": math_calc,
    "code_run": code_run,
}
