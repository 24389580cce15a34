"""The ZeroSCROLLS tasks in the closed vocabulary of the embedded model.

Summaries list what was noted for a name, questions ask for a noted value or a chain of names: all
of which that model knows. It was never taught to count reviews or to order numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.infinitebench.small import option_letters
from catekv.tasks.small import stories
from catekv.tasks.small.parts import LIST_TOKENS, small_parts, story_plan
from catekv.tasks.wording import spelling

_FACTS = 4
_CHAPTERS = 5
_BEGUN = "the answer is"


def summary(request: BuildRequest, index: int) -> Plan:
    """All values noted for one name."""
    asked = stories.summary(story_seed(request, index), _FACTS)
    return story_plan(asked, max_new_tokens=LIST_TOKENS)


def question(request: BuildRequest, index: int) -> Plan:
    """A value noted for one of four names."""
    return story_plan(stories.needles(story_seed(request, index)))


def two_hops(request: BuildRequest, index: int) -> Plan:
    """The two names that a value was passed to, one after the other."""
    return story_plan(stories.chain(story_seed(request, index), 2))


def choice(request: BuildRequest, index: int) -> Plan:
    """A noted value among those noted for other names."""
    asked = stories.needles(story_seed(request, index))
    letters = option_letters(asked, request.random(index, "options"))
    named = {text: f"({letter})" for text, letter in letters.items()}
    return story_plan(asked, {"spelling": spelling.named(named)})


def percentage(request: BuildRequest, index: int) -> Plan:
    """Inns that are bright or dark; the share of bright ones is asked for."""
    share = request.random(index, "share").uniform(0.2, 0.8)
    inns = Growing(lambda random: random.random() < share, request.random(index, "inns"))
    scoring = {"spelling": spelling.percent()}

    def draft(units: int, extra: int) -> Parts:
        bright = inns.first(units)
        text = "\n".join(f"the inn is {'bright' if one else 'dark'} ." for one in bright)
        # 100 has no numeral
        answer = f"{min(99, round(100 * sum(bright) / units)):02d}"
        return small_parts(text, "ask most bright ?", _BEGUN, answer, scoring)

    return Plan(draft, minimum=4)


def order(request: BuildRequest, index: int) -> Plan:
    """Numbered books, each with the number of its winter; the order of winters is asked for."""
    seed = story_seed(request, index)
    random = request.random(index, "books")
    winters = random.sample(range(10, 100), _CHAPTERS)
    lines = [f"book {number:02d} winter {winter} ." for number, winter in enumerate(winters, 1)]
    ranked = sorted(range(_CHAPTERS), key=lambda place: winters[place])
    answer = " ".join(f"{place + 1:02d}" for place in ranked)
    hidden = list(zip(sorted(random.random() for _ in lines), lines, strict=True))
    story = stories.story(seed, hidden)

    def draft(units: int, extra: int) -> Parts:
        return small_parts(story.text(units), "trace all winter ?", "all", answer)

    return Plan(draft)


#: by the name without ``zeroscrolls/``
PLANS: dict[str, Callable[[BuildRequest, int], Plan]] = {
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
