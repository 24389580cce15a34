"""SCBench sessions at any length: one context grows unit by unit, its questions are drawn once."""

from __future__ import annotations

import json
import statistics
import string
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple, TypeVar

from catekv.errors import UserError
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.core.wording import Wording
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.drawing.words import coded_word, uuid
from catekv.tasks.families.scbench.rows import ASK
from catekv.tasks.families.scbench.session import Turn
from catekv.tasks.families.scbench.table import NEW_TOKENS
from catekv.tasks.small.parts import NEW_TOKENS as SMALL_TOKENS
from catekv.tasks.small.parts import is_small
from catekv.tasks.wording.hay import Filler, insert

Item = TypeVar("Item")
#: chains of variables: their statements, one session asks one chain a turn
_CHAIN = (3, 7)
_LETTERS = string.ascii_lowercase + string.digits


class Drawn(NamedTuple):
    """A session whose length is open: how it looks with so many units, and the fewest of them."""

    draw: Callable[[int], tuple[str, list[Turn]]]
    minimum: int


def question(name: str, text: str, answer: str, label: object) -> Turn:
    """A turn in the words and with the allowance of a task."""
    scoring = {"rule": name, "label": label}
    return Turn(ASK[name].format(text), answer, NEW_TOKENS[name][0], scoring, outputs=(answer,))


def kv(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Keys and values as one JSON object; the asked pairs are spread over it."""
    if is_small(request.wording):
        return _small_kv(request, number, turns)
    random = request.random(number, "asked")
    asked = [(uuid(random), uuid(random)) for _ in range(turns)]
    others = Growing(lambda draw: (uuid(draw), uuid(draw)), request.random(number, "others"))
    questions = [question("kv", key, value, value) for key, value in asked]

    def draw(units: int) -> tuple[str, list[Turn]]:
        return kv_lines(spread(others.first(units), asked)), questions

    return Drawn(draw, 0)


def kv_lines(pairs: Iterable[tuple[str, str]]) -> str:
    """Pairs as one JSON object, a pair a line."""
    lines = ",\n".join(f'"{key}": "{value}"' for key, value in pairs)
    return f"JSON data:\n{{{lines}}}\n"


def spread(others: list[Item], asked: list[Item]) -> list[Item]:
    """The asked items at equal distances among the others."""
    items = list(others)
    gap = len(others) / len(asked)
    for place, item in enumerate(asked):
        items.insert(int((place + 0.5) * gap) + place, item)
    return items


def _small_kv(request: BuildRequest, number: int, turns: int) -> Drawn:
    """The same in the closed vocabulary of the embedded model: notes in filler."""
    wording, random = request.wording, request.random(number, "asked")
    keys = wording.keys("words", turns, random)
    values = wording.values("numbers", turns, random)
    notes = [wording.needle("numbers", *pair) for pair in zip(keys, values, strict=True)]
    filler = Filler(wording.filler_line)
    questions = [
        Turn(
            wording.needle_question("numbers", [key], 1),
            value,
            SMALL_TOKENS,
            {"rule": "kv", "label": value, "spelling": "joined"},
            prefix=" " + wording.needle_answer_prefix("numbers", [key], 1),
            outputs=(value,),
        )
        for key, value in zip(keys, values, strict=True)
    ]
    places = [(place + 0.5) / turns for place in range(turns)]

    def draw(units: int) -> tuple[str, list[Turn]]:
        lines = insert(filler.lines(units), list(zip(places, notes, strict=True)))
        return "\n".join(lines) + "\n", questions

    return Drawn(draw, 0)


def vt(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Chains of variables in filler; every turn asks for the names of another chain."""
    wording, random = request.wording, request.random(number, "chains")
    sizes = [random.randint(*_CHAIN) for _ in range(turns)]
    names = wording.variables(sum(sizes), random)
    values: list[str] = []
    while len(values) < turns:
        value = wording.variable_value(random)
        if value not in values:
            values.append(value)
    statements: list[tuple[float, str]] = []
    questions = []
    for size, value in zip(sizes, values, strict=True):
        chain, names = names[:size], names[size:]
        places = sorted(random.random() for _ in range(size))
        for place, name, source in zip(places, chain, [value, *chain[:-1]], strict=True):
            statements.append((place, wording.assignment(name, source, source == value)))
        questions.append(_chain_turn(wording, value, chain))
    filler = Filler(wording.filler_line)
    opening = wording.chain_instruction()

    def draw(units: int) -> tuple[str, list[Turn]]:
        lines = insert(filler.lines(units), statements)
        return "\n".join([*([opening] if opening else []), *lines]) + "\n", questions

    return Drawn(draw, 0)


def _chain_turn(wording: Wording, value: str, chain: list[str]) -> Turn:
    # a small model lists fewer tokens a name than a real tokenizer needs
    tokens = SMALL_TOKENS if is_small(wording) else max(NEW_TOKENS["vt"][0], 8 * len(chain))
    return Turn(
        wording.chain_question(value),
        " ".join(chain),
        tokens,
        {"rule": "vt", "label": chain},
        prefix=" " + wording.chain_answer_prefix(value, len(chain)).strip(),
        outputs=tuple(chain),
    )


def prefix_suffix(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Strings of letters and digits; a question gives both ends of one. Distractors share one of
    the ends with an asked string."""
    random = request.random(number, "asked")

    def text(draw: Random, start: str = "", end: str = "") -> str:
        size = draw.randint(20, 100) - len(start) - len(end)
        return start + "".join(draw.choices(_LETTERS, k=max(1, size))) + end

    asked = [text(random) for _ in range(turns)]
    shared: list[str] = []
    for each in asked:
        shared += [text(random, start=each[:8]), text(random, end=each[-8:])]
    ends = {(each[:8], each[-8:]) for each in asked}
    if len(ends) < turns or any((each[:8], each[-8:]) in ends for each in shared):
        raise UserError(f"{request.task.name}: two of its strings have the same ends")
    others = Growing(text, request.random(number, "others"))
    questions = [
        Turn(
            f"\nWrite the string above that begins with {each[:8]} and ends with {each[-8:]}.\n"
            "String:",
            each,
            NEW_TOKENS["prefix_suffix"][0],
            {"rule": "prefix_suffix", "label": each},
            outputs=(each,),
        )
        for each in asked
    ]

    def draw(units: int) -> tuple[str, list[Turn]]:
        items = [*shared, *others.first(units)]
        request.random(number, f"order of {units}").shuffle(items)
        gap = len(items) / len(asked)
        for place, each in enumerate(asked):
            items.insert(int((place + 0.5) * gap) + place, each)
        return "A list of strings follows, one a line.\n" + "\n".join(items) + "\n", questions

    return Drawn(draw, 0)


def mf(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Whole numbers; questions whose answer is one whole number, in an order of their own."""
    numbers = Growing(lambda draw: draw.randint(0, 999), request.random(number, "numbers"))
    order = request.random(number, "questions")
    kinds = list(_STATISTICS)
    order.shuffle(kinds)

    def draw(units: int) -> tuple[str, list[Turn]]:
        values = numbers.first(units)
        turns_found = []
        for kind in kinds:
            value = _STATISTICS[kind](values)
            if value is not None:
                asked = f"What is the {kind} of the numbers above?"
                turns_found.append(question("mf", asked, str(value), value))
        # a list in which fewer questions have one whole answer asks some of them again
        chosen = [turns_found[place % len(turns_found)] for place in range(turns)]
        return "A list of whole numbers follows.\n" + json.dumps(values) + "\n", chosen

    return Drawn(draw, 8)


def _mode(values: list[int]) -> int | None:
    (first, most), *others = Counter(values).most_common(2)
    return first if not others or others[0][1] < most else None


def _whole(value: float) -> int | None:
    return int(value) if float(value).is_integer() else None


_STATISTICS: dict[str, Callable[[list[int]], int | None]] = {
    "largest": max,
    "smallest": min,
    "second largest different value": lambda values: _second(values, True),
    "second smallest different value": lambda values: _second(values, False),
    "median": lambda values: _whole(statistics.median(values)),
    "most frequent value": _mode,
    "mean": lambda values: _whole(sum(values) / len(values)),
}


def _second(values: list[int], largest: bool) -> int | None:
    different = sorted(set(values), reverse=largest)
    return different[1] if len(different) > 1 else None


def many_shot(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Examples of a rule that nobody states: the first letter's half of the alphabet and whether
    the word is long decide between four labels without a character in common."""
    labels = ["kiv", "dap", "mon", "sge"]
    random = request.random(number, "labels")
    random.shuffle(labels)

    def word(draw: Random) -> str:
        text = coded_word(draw)
        return text if draw.random() < 0.5 else text + coded_word(draw)[:4]

    def label(text: str) -> str:
        return labels[2 * (text[0] < "n") + (len(text) > 6)]

    examples = Growing(word, request.random(number, "examples"))
    asked: list[str] = []
    while len(asked) < turns:
        text = word(random)
        if text not in asked:
            asked.append(text)
    questions = [
        Turn(
            f"\nWord: {text}\nLabel:",
            label(text),
            NEW_TOKENS["many_shot"][0],
            {"rule": "many_shot", "label": label(text)},
            outputs=(label(text),),
        )
        for text in asked
    ]

    def draw(units: int) -> tuple[str, list[Turn]]:
        lines = [f"Word: {text}\nLabel: {label(text)}\n" for text in examples.first(units)]
        return "Learn the labels from examples.\n\n" + "\n".join(lines), questions

    return Drawn(draw, 4)
