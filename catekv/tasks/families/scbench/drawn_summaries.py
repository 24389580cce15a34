"""Articles one after the other, to be summed up one a turn; in the mixed task needles between them.

An article reports facts of a synthetic world among prose, and its summary states them again in
other words. Its heading names it, and the question names the heading.
"""

from __future__ import annotations

from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing import stories, words
from catekv.tasks.drawing.drawn_samples import story_seed
from catekv.tasks.families.scbench.drawn import Drawn
from catekv.tasks.families.scbench.rows import ASK
from catekv.tasks.families.scbench.session import Turn
from catekv.tasks.families.scbench.table import NEW_TOKENS
from catekv.tasks.wording.hay import insert

#: facts that an article reports, and its summary states again
_FACTS = 4


def summary(request: BuildRequest, number: int, turns: int) -> Drawn:
    """One article a turn."""
    return _session(request, number, turns, turns, "summary")


def summary_with_needles(request: BuildRequest, number: int, turns: int) -> Drawn:
    """Turns ask for a summary and for a number that stands between the paragraphs in turn."""
    return _session(request, number, turns, (turns + 1) // 2, "summary_with_needles")


def _session(request: BuildRequest, number: int, turns: int, articles: int, task: str) -> Drawn:
    wording = request.wording
    random = request.random(number, "needles")
    seed = story_seed(request, number)
    reports = [stories.reported((*seed, "article", place), _FACTS) for place in range(articles)]
    headings = words.distinct(lambda: words.key(random), articles, words.NOUNS, "headings")
    keys = wording.keys("words", turns - articles, random)
    values = wording.values("numbers", turns - articles, random)
    pairs = list(zip(keys, values, strict=True))
    needles = [(random.random(), wording.needle("numbers", key, value)) for key, value in pairs]
    summaries = [
        Turn(
            f"\nSum up the article {heading} above in {_FACTS} short sentences.\nSummary:",
            " ".join(report.summary),
            NEW_TOKENS[task][0],
            {"rule": "summary", "label": " ".join(report.summary)},
            outputs=(" ".join(report.summary),),
        )
        for heading, report in zip(headings, reports, strict=True)
    ]
    asked = [
        Turn(
            ASK["needle"].format(wording.needle_question("numbers", [key], 1)),
            value,
            NEW_TOKENS[task][-1],
            {"rule": "needle", "label": value},
            outputs=(value,),
        )
        for key, value in pairs
    ]
    in_turn = [*summaries]
    for place, turn in enumerate(asked):
        in_turn.insert(2 * place + 1, turn)

    def draw(units: int) -> tuple[str, list[Turn]]:
        # the words of the prose are dealt out evenly
        shares = [
            units * (place + 1) // articles - units * place // articles for place in range(articles)
        ]
        paragraphs = []
        for heading, report, share in zip(headings, reports, shares, strict=True):
            first, *rest = report.story.text(share).split("\n\n")
            paragraphs += [f"Article {heading}\n{first}", *rest]
        return "\n\n".join(insert(paragraphs, needles)) + "\n\n", in_turn

    return Drawn(draw, 0)
