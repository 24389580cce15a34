"""Rows of the shape of InfiniteBench's book, dialogue and code tasks, drawn in English (and
Chinese): for trying things out, not for results to compare with anybody's."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing import chinese, stories, words
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.drawing.essay import essay, place_name
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.infinitebench.prompts import LETTERS, Item, parts
from catekv.tasks.wording.hay import insert

#: facts that the summary of a book states
_FACTS = 8
_SPEAKERS = 4


def longbook_qa_eng(request: BuildRequest, index: int) -> Plan:
    """A fact of the synthetic world, hidden in prose."""
    asked = stories.asked(story_seed(request, index))
    return Plan(
        lambda units, extra: parts(
            "longbook_qa_eng",
            Item(asked.story.text(units), asked.question, list(asked.answers), asked.answers),
        )
    )


def longbook_qa_chn(request: BuildRequest, index: int) -> Plan:
    """A fact about someone or something in Chinese prose; the unit is one sentence."""
    seed = story_seed(request, index)
    question = chinese.question(seed)
    random = request.random(index, "places")
    hidden = [(random.random(), text + "\n") for text in (*question.gold, *question.near)]
    prose = Growing(chinese.sentence, request.random(index, "prose"))
    asked, answers = question.text, question.outputs

    def draft(units: int, extra: int) -> Parts:
        text = "".join(insert(prose.first(units), hidden))
        return parts("longbook_qa_chn", Item(text, asked, list(answers), answers))

    return Plan(draft)


def shuffled_options(right: str, wrong: tuple[str, ...], random: Random) -> tuple[list[str], str]:
    """All options in drawn order, and the letter of the right one."""
    options = random.sample([right, *wrong], len(wrong) + 1)
    return options, LETTERS[options.index(right)]


def longbook_choice_eng(request: BuildRequest, index: int) -> Plan:
    """A fact of the synthetic world with three wrong ones of its kind."""
    asked = stories.choice(story_seed(request, index))
    right = asked.answers[0]
    options, letter = shuffled_options(right, asked.wrong, request.random(index, "options"))
    return Plan(
        lambda units, extra: parts(
            "longbook_choice_eng",
            Item(
                asked.story.text(units),
                asked.question,
                [right, letter],
                (f"{letter}. {right}",),
                options,
            ),
        )
    )


def longbook_sum_eng(request: BuildRequest, index: int) -> Plan:
    """Facts strewn over prose; the summary states them again, one a line."""
    report = stories.reported(story_seed(request, index), _FACTS)
    summary = "\n".join(report.summary)
    return Plan(
        lambda units, extra: parts(
            "longbook_sum_eng", Item(report.story.text(units), "", [summary], (summary,))
        )
    )


def longdialogue_qa_eng(request: BuildRequest, index: int) -> Plan:
    """A script: every speaker says once where home is, and the masked one names a home again."""
    random = request.random(index, "speakers")
    names = words.distinct(lambda: words.noun(random).upper(), _SPEAKERS, words.NOUNS, "names")
    homes = words.distinct(lambda: place_name(random), _SPEAKERS, words.NOUNS, "places")
    told = [
        (0.8 * random.random(), f"{name}: I grew up in {home}.")
        for name, home in zip(names, homes, strict=True)
    ]
    told.append((0.9, f"$$MASK$$: How I miss {homes[0]}, where I grew up."))
    prose = essay(request.random(index, "prose"))
    lines = Growing(lambda speaker: f"{speaker.choice(names)}: {next(prose)}", random)
    return Plan(
        lambda units, extra: parts(
            "longdialogue_qa_eng",
            Item("\n".join(insert(lines.first(units), told)), "", [names[0]], (names[0],)),
        )
    )


def code_debug(request: BuildRequest, index: int) -> Plan:
    """Small functions; one of them returns a name that does not exist."""
    random = request.random(index, "functions")
    draw = Growing(
        lambda source: words.key(source).replace("-", "_"), request.random(index, "names")
    )
    four = draw.first(len(LETTERS))
    options, letter = shuffled_options(four[0], tuple(four[1:]), random)
    places = [random.random() for _ in four]
    broken = words.common_word(random)
    numbers = Growing(lambda source: source.randint(2, 99), request.random(index, "numbers"))

    def code(place: int) -> str:
        name, factor = draw.first(place + 1)[place], numbers.first(place + 1)[place]
        result = broken if place == 0 else "total"
        return f"def {name}(values):\n    total = {factor} * sum(values)\n    return {result}\n"

    def text(units: int) -> str:
        others = [code(len(four) + place) for place in range(units)]
        return "\n".join(insert(others, [(at, code(place)) for place, at in enumerate(places)]))

    return Plan(
        lambda units, extra: parts(
            "code_debug",
            Item(text(units), "", [four[0], letter], (f"{letter}. {four[0]}",), options),
        )
    )


#: by the name without ``infinitebench/``
PLANS: dict[str, Callable[[BuildRequest, int], Plan]] = {
    "longbook_sum_eng": longbook_sum_eng,
    "longbook_choice_eng": longbook_choice_eng,
    "longbook_qa_eng": longbook_qa_eng,
    "longbook_qa_chn": longbook_qa_chn,
    "longdialogue_qa_eng": longdialogue_qa_eng,
    "code_debug": code_debug,
}
