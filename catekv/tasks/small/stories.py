"""Stories in the closed vocabulary of the embedded model, asked the way that it can answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catekv.tasks.core.randomness import generator
from catekv.tasks.drawing.stories import Story
from catekv.tasks.wording.small import SmallWording

_WORDING = SmallWording()
#: a story of the embedded model is about so many things, and one of them is asked for
_NEEDLES = 4


@dataclass(frozen=True)
class SmallAsked:
    """A story and a question; the answer goes on where ``answer_prefix`` ends."""

    story: Story
    question: str
    answer_prefix: str
    answer: str
    wrong: tuple[str, ...] = ()


def story(seed: tuple[object, ...], hidden: Sequence[tuple[float, str]]) -> Story:
    """An essay with sentences hidden at relative places."""
    return Story(_WORDING.essay(generator(*seed, "prose")), hidden, block=False)


def needles(seed: tuple[object, ...]) -> SmallAsked:
    """Four noted values, one of them asked for; the others are the wrong ones."""
    random = generator(*seed, "facts")
    keys = _WORDING.keys("words", _NEEDLES, random)
    values = _WORDING.values("numbers", _NEEDLES, random)
    lines = [_WORDING.needle("numbers", *pair) for pair in zip(keys, values, strict=True)]
    return SmallAsked(
        story(seed, [(random.random(), line) for line in lines]),
        _WORDING.needle_question("numbers", keys[:1], 1),
        _WORDING.needle_answer_prefix("numbers", keys[:1], 1),
        values[0],
        tuple(values[1:]),
    )


def chain(seed: tuple[object, ...], hops: int) -> SmallAsked:
    """A value handed from name to name ``hops`` times; the names are the answer."""
    return chains(seed, hops, others=0)


def chains(seed: tuple[object, ...], hops: int, others: int) -> SmallAsked:
    """:func:`chain` among so many others of the same length."""
    random = generator(*seed, "facts")
    value = _WORDING.variable_value(random)
    names = _WORDING.variables(hops * (1 + others), random)
    starts = [value]
    while len(starts) <= others:
        other = _WORDING.variable_value(random)
        if other not in starts:
            starts.append(other)
    hidden: list[tuple[float, str]] = []
    for number, start in enumerate(starts):
        own = names[number * hops : (number + 1) * hops]
        lines = [
            _WORDING.assignment(name, source, source == start)
            for name, source in zip(own, [start, *own[:-1]], strict=True)
        ]
        positions = sorted(random.random() for _ in lines)
        hidden += zip(positions, lines, strict=True)
    return SmallAsked(
        story(seed, hidden),
        _WORDING.chain_question(value),
        _WORDING.chain_answer_prefix(value, hops),
        " ".join(names[:hops]),
    )


def summary(seed: tuple[object, ...], facts: int) -> SmallAsked:
    """Several values noted for one key; the summary lists all of them in their order."""
    random = generator(*seed, "facts")
    (key,) = _WORDING.keys("words", 1, random)
    values = _WORDING.values("numbers", facts, random)
    positions = sorted(random.random() for _ in values)
    lines = [_WORDING.needle("numbers", key, value) for value in values]
    prefix = _WORDING.needle_answer_prefix("numbers", [key], facts)
    return SmallAsked(
        story(seed, list(zip(positions, lines, strict=True))),
        _WORDING.needle_question("numbers", [key], facts),
        prefix,
        f" . {prefix} ".join(values) + " .",
    )


def listed(seed: tuple[object, ...], facts: int, backwards: bool) -> SmallAsked:
    """One value noted for each of several names, all asked for in the order of the text, or in the
    opposite one."""
    random = generator(*seed, "facts")
    keys = _WORDING.keys("words", facts, random)
    values = _WORDING.values("numbers", facts, random)
    lines = [_WORDING.needle("numbers", *pair) for pair in zip(keys, values, strict=True)]
    positions = sorted(random.random() for _ in lines)
    asked = keys[::-1] if backwards else keys
    prefix = _WORDING.needle_answer_prefix("numbers", asked, 1)
    return SmallAsked(
        story(seed, list(zip(positions, lines, strict=True))),
        _WORDING.needle_question("numbers", asked, 1),
        prefix,
        " ".join(lines[::-1] if backwards else lines).removeprefix(prefix).strip(),
    )


def counted_off(seed: tuple[object, ...], facts: int, place: int) -> SmallAsked:
    """Several values noted for one name; the answer is begun with those before the one that is
    asked for, which stands at ``place`` in the text. ``wrong`` are the others in their order."""
    random = generator(*seed, "facts")
    (key,) = _WORDING.keys("words", 1, random)
    values = _WORDING.values("numbers", facts, random)
    positions = sorted(random.random() for _ in values)
    lines = [_WORDING.needle("numbers", key, value) for value in values]
    begun = _WORDING.needle_answer_prefix("numbers", [key], facts)
    return SmallAsked(
        story(seed, list(zip(positions, lines, strict=True))),
        _WORDING.needle_question("numbers", [key], facts),
        " ".join([*(f"{begun} {value} ." for value in values[:place]), begun]),
        values[place],
        tuple(value for number, value in enumerate(values) if number != place),
    )
