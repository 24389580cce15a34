"""Questions about a synthetic world whose paragraphs are hidden in prose, several to one text."""

from __future__ import annotations

from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing import stories
from catekv.tasks.drawing.drawn_samples import story_seed
from catekv.tasks.families.scbench.drawn import Drawn, question
from catekv.tasks.families.scbench.rows import choice
from catekv.tasks.families.scbench.session import Turn


def qa_eng(request: BuildRequest, number: int, turns: int) -> Drawn:
    """One fact a turn."""
    every = stories.several(story_seed(request, number), turns)
    questions = [question("qa_eng", one.question, one.answers[0], one.answers[0]) for one in every]
    return Drawn(lambda units: (every[0].story.text(units), questions), 0)


def choice_eng(request: BuildRequest, number: int, turns: int) -> Drawn:
    """One fact a turn, with three wrong ones of its kind."""
    every = stories.several(story_seed(request, number), turns)
    random = request.random(number, "options")
    questions: list[Turn] = []
    for one in every:
        right = one.answers[0]
        text, letter, scoring = choice(one.question, right, random.sample([right, *one.wrong], 4))
        asked = question("choice_eng", text, letter, letter)
        scoring = {**asked.scoring, **scoring}
        questions.append(Turn(asked.question, letter, asked.new_tokens, scoring, outputs=(letter,)))
    return Drawn(lambda units: (every[0].story.text(units), questions), 0)
