"""Long answers that can be checked line by line, for models that solve no competition problems.

What an eviction must keep differs: entries of the prompt far away (``copy_long``, ``reverse``,
``sort``), the prompt's and the answer's last line (``add_chain``), the last lines of the answer
(``state_track``), or an early line of the answer itself (``recall_own``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.families.reasoning import small
from catekv.tasks.metrics import lines
from catekv.tasks.small.parts import is_small
from catekv.tasks.wording.vocabulary import NOUNS

#: lines of the smallest answer
_MINIMUM = 2
#: variables of ``state_track``
_STATE = "abc"
#: characters a token has at least, in what these answers are made of
_CHARACTERS_A_TOKEN = 1.5


class Exercise(NamedTuple):
    """Instruction, given lines and the lines of the answer."""

    instruction: str
    given: list[str]
    answer: list[str]


def _pairs(count: int, random: Random) -> list[str]:
    return [f"{random.choice(NOUNS)} {random.randint(10, 99)}" for _ in range(count)]


def copy_long(count: int, random: Random) -> Exercise:
    given = _pairs(count, random)
    return Exercise("Copy all lines below in the same order.", given, given)


def reverse(count: int, random: Random) -> Exercise:
    given = _pairs(count, random)
    return Exercise(
        "Write the lines below in reverse order, the last one first.", given, given[::-1]
    )


def sort(count: int, random: Random) -> Exercise:
    numbers = random.sample(range(1000, 1000 + 20 * max(count, 10)), count)
    given, answer = ([str(number) for number in each] for each in (numbers, sorted(numbers)))
    return Exercise("Write the numbers below in rising order, one a line.", given, answer)


def add_chain(count: int, random: Random) -> Exercise:
    total = random.randint(20, 60)
    given = [f"start {total}"]
    answer = []
    for _ in range(count):
        step = random.choice((-1, 1)) * random.randint(1, 9)
        if not 0 <= total + step <= 99:
            step = -step
        total += step
        given.append(f"{step:+d}")
        answer.append(str(total))
    return Exercise(
        "Add the numbers one by one. Write the total after each of them.", given, answer
    )


def state_track(count: int, random: Random) -> Exercise:
    state = {name: random.randint(0, 9) for name in _STATE}
    given = [" ".join(f"{name}={value}" for name, value in state.items())]
    answer = []
    for _ in range(count):
        name, value = random.choice(_STATE), random.randint(0, 9)
        state[name] = value
        given.append(f"set {name} to {value}")
        answer.append(" ".join(f"{each}={number}" for each, number in state.items()))
    return Exercise("Follow the updates. Write all variables after each of them.", given, answer)


def recall_own(count: int, random: Random) -> Exercise:
    written, place = _pairs(count, random), random.randint(1, count)
    return Exercise(
        f"Copy all lines below in the same order; then write line {place} once more.",
        written,
        [*written, written[place - 1]],
    )


def addition_digits(count: int, random: Random) -> Exercise:
    digits = max(2, count)
    left, right = ([random.randint(1, 9) for _ in range(digits)] for _ in range(2))
    carry, answer, result = 0, [], []
    for one, other in zip(reversed(left), reversed(right), strict=True):
        total = one + other + carry
        answer.append(f"{one} + {other} + {carry} = {total}")
        result.append(total % 10)
        carry = total // 10
    shown = ([carry] if carry else []) + result[::-1]
    answer.append(" ".join(map(str, shown)))
    return Exercise(
        "Add the two numbers digit by digit from the right, with the carry. Write one line for "
        "each digit, then all digits of the sum.",
        [" ".join(map(str, left)), " ".join(map(str, right))],
        answer,
    )


EXERCISES: dict[str, Callable[[int, Random], Exercise]] = {
    "copy_long": copy_long,
    "reverse": reverse,
    "sort": sort,
    "add_chain": add_chain,
    "state_track": state_track,
    "recall_own": recall_own,
    "addition_digits": addition_digits,
}


def plan(request: BuildRequest, index: int) -> Plan:
    """An exercise; the unit is one line of its answer. Prompt and answer fill the length."""
    name = request.task.name.partition("/")[2]
    if is_small(request.wording):
        return small.EXERCISES[name](request, index)
    exercise = EXERCISES[name]
    worked = exercise(3, generator(*story_seed(request, index), "example"))

    @lru_cache(maxsize=2)  # the search looks at one text twice: estimated, then counted
    def draft(units: int, extra: int) -> Parts:
        made = exercise(units, generator(*story_seed(request, index), "lines"))
        characters = sum(len(line) + 1 for line in made.answer)
        return Parts(
            context=f"{worked.instruction}\n{_block(worked.given)}\nAnswer:\n"
            f"{_block(worked.answer)}\n\n{made.instruction}\n{_block(made.given)}\n",
            question="Answer:\n",
            answer_prefix="",
            outputs=tuple(made.answer),
            max_new_tokens=16 + int(characters / _CHARACTERS_A_TOKEN),
            wording="english-1",
            metadata={"lines": len(made.answer)},
        )

    return Plan(draft, _MINIMUM)


def _block(text: list[str]) -> str:
    return "\n".join(text)


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official``: share of the lines that lead the answer rightly; ``strict``: all of them and
    none more."""
    expected: Sequence[str] = sample.outputs
    if "small" in sample.scoring:
        prediction, expected = small.lines(prediction, sample)
    rated = lines.rate(prediction, expected)
    return {"official": rated.prefix, "strict": float(rated.exact)}
