"""Rows in the layout of ZeroSCROLLS, drawn in English: for trying things out, not for results to
compare with anybody's."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from catekv.tasks.core.randomness import generator
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing import stories, words, world
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.drawing.essay import essay
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.drawing.stories import Story
from catekv.tasks.families.zeroscrolls.rows import row_parts
from catekv.tasks.wording.hay import insert

#: name of this set of prompts
WORDING = "english-1"
_CUT = " [The rest of the text was left out.]\n\n"
_LETTERS = "ABCD"
_CHAPTERS = 5
_REPORTED = {"gov_report": 12, "summ_screen_fd": 6, "qmsum": 4, "squality": 4}
_INSTRUCTIONS = {
    "gov_report": "Read the report and sum it up on about one page.",
    "summ_screen_fd": "Read the script of an episode and tell in a few sentences what happens.",
    "qmsum": "Read the minutes of a meeting and do what is asked below them in a few sentences.",
    "squality": "Read the story and answer the question below it in a few sentences.",
    "qasper": "Read the article and answer the question below it as briefly as you can.",
    "narrative_qa": "Read the story and answer the question below it in a few words.",
    "musique": "Read the paragraphs and answer the question below them in a few words. It takes "
    "more than one of them.",
    "quality": "Read the story and choose the right one of four answers; name its letter only.",
    "space_digest": "Read the reviews of a hotel and say how many percent of them are favourable.",
    "book_sum_sort": "The summaries below belong to the chapters of one book, but their order was "
    "lost. Write down their numbers in the right order, separated by commas.",
}
_HEADINGS = {"qmsum": "Minutes", "summ_screen_fd": "Script", "space_digest": "Reviews"}
_PRAISE = (
    "The room was spotless.", "The staff helped us with everything.", "Breakfast was delicious.",
    "We slept very well.", "We will certainly come again.", "The view was wonderful.",
)  # fmt: skip
_BLAME = (
    "The room was filthy.", "The staff ignored us.", "Breakfast was cold and stale.",
    "We could not sleep for the noise.", "We will never come again.", "The lift was broken.",
)  # fmt: skip


def row(
    task: str, index: int, document: str, query: str, output: str | list[str]
) -> dict[str, Any]:
    """A row in the official layout with a prompt of our own."""
    before = f"{_INSTRUCTIONS[task]}\n\n{_HEADINGS.get(task, 'Text')}:\n"
    text = before + document
    asked = f"Question: {query}\n\n" if query else ""
    start = len(text) + 2
    return {
        "id": f"built-in-{index}",
        "input": f"{text}\n\n{asked}{'Answer:' if query else 'Summary:'}",
        "output": output,
        "document_start_index": len(before),
        "document_end_index": len(text),
        "query_start_index": start,
        "query_end_index": start + len(asked),
        "truncation_seperator": _CUT,
    }


def _plan(
    task: str, index: int, text: Callable[[int], str], query: str, output: str | list[str]
) -> Plan:
    return Plan(
        lambda units, extra: row_parts(task, row(task, index, text(units), query, output), WORDING)
    )


def summary(request: BuildRequest, task: str, index: int) -> Plan:
    """Facts strewn over prose (a script where speakers say everything) and stated again."""
    seed = story_seed(request, index)
    report = stories.reported(seed, _REPORTED[task])
    output = " ".join(report.summary)
    query = {
        "qmsum": f"What was reported about {report.subject}?",
        "squality": f"What does the story say about {report.subject}?",
    }.get(task, "")
    if task != "summ_screen_fd":
        return _plan(task, index, report.story.text, query, output)
    random = generator(*seed, "speakers")
    names = words.distinct(lambda: words.noun(random).upper(), 4, words.NOUNS, "names")
    prose = essay(generator(*seed, "lines"))
    lines = Growing(lambda speaker: f"{speaker.choice(names)}: {next(prose)}", random)
    said = [(place, f"{random.choice(names)}: {text}") for place, text in report.hidden]
    return _plan(
        task, index, lambda units: "\n".join(insert(lines.first(units), said)), query, output
    )


def question(request: BuildRequest, task: str, index: int) -> Plan:
    """A fact of the synthetic world, hidden in prose."""
    asked = stories.asked(story_seed(request, index))
    return _plan(task, index, asked.story.text, asked.question, list(asked.answers))


def two_hops(request: BuildRequest, task: str, index: int) -> Plan:
    """Two paragraphs of the synthetic world among others; the unit is one paragraph."""
    seed = story_seed(request, index)
    asked = world.question((*seed, "question"), 2)
    random = generator(*seed, "places")
    gold = [(random.random(), text) for text in asked.gold]
    source = world.others((*seed, "others"), asked.outputs)
    near = iter(asked.near)
    others = Growing(lambda _: next(near, None) or next(source), random)

    def text(units: int) -> str:
        paragraphs = insert(others.first(units), gold)
        return "\n\n".join(f"Paragraph {n}: {part}" for n, part in enumerate(paragraphs, 1))

    return _plan(task, index, text, asked.text, list(asked.outputs))


def choice(request: BuildRequest, task: str, index: int) -> Plan:
    """A fact of the synthetic world with three wrong ones of its kind."""
    asked = stories.choice(story_seed(request, index))
    right = asked.answers[0]
    options = request.random(index, "options").sample([right, *asked.wrong], len(_LETTERS))
    listed = [f"({letter}) {text}" for letter, text in zip(_LETTERS, options, strict=True)]
    query = "\n".join([asked.question, *listed])
    return _plan(task, index, asked.story.text, query, listed[options.index(right)])


def percentage(request: BuildRequest, task: str, index: int) -> Plan:
    """Reviews that praise or blame in every sentence; the unit is one review."""
    random = request.random(index, "share")
    share = random.uniform(0.2, 0.8)

    def review(random: Random) -> tuple[bool, str]:
        good = random.random() < share
        return good, " ".join(random.sample(_PRAISE if good else _BLAME, random.randint(2, 4)))

    reviews = Growing(review, request.random(index, "reviews"))

    def draft(units: int, extra: int) -> Any:
        chosen = reviews.first(units)
        text = "\n\n".join(f"Review {n}:\n{part}" for n, (_, part) in enumerate(chosen, 1))
        output = f"{round(100 * sum(good for good, _ in chosen) / units)}%"
        query = "How many percent of the reviews are favourable?"
        return row_parts(task, row(task, index, text, query, output), WORDING)

    return Plan(draft, minimum=4)


def order(request: BuildRequest, task: str, index: int) -> Plan:
    """Summaries of chapters that say how old the hero is; the unit is one word of prose."""
    seed = story_seed(request, index)
    random = generator(*seed, "chapters")
    hero = world.make("person", random).name
    ages = sorted(random.sample(range(8, 80), _CHAPTERS))
    shuffled = random.sample(range(_CHAPTERS), _CHAPTERS)
    chapters = [Story(essay(generator(*seed, place)), [], block=False) for place in shuffled]

    def text(units: int) -> str:
        told = [
            f"{hero} is {ages[place]} years old now. {chapter.text(units // _CHAPTERS)}".strip()
            for place, chapter in zip(shuffled, chapters, strict=True)
        ]
        return "\n\n".join(f"Summary {number}: {text}" for number, text in enumerate(told, 1))

    output = ", ".join(str(shuffled.index(place) + 1) for place in range(_CHAPTERS))
    return _plan(task, index, text, "In which order do the summaries belong?", output)


PLANS: dict[str, Callable[[BuildRequest, str, int], Plan]] = {
    "gov_report": summary,
    "summ_screen_fd": summary,
    "qmsum": summary,
    "squality": summary,
    "qasper": question,
    "narrative_qa": question,
    "musique": two_hops,
    "quality": choice,
    "space_digest": percentage,
    "book_sum_sort": order,
}
