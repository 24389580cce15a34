"""The exercises that the embedded model's vocabulary can express: it lists what is noted for four
names, in a given order or for one name in any, and follows a value from name to name.

Lines of an answer end with a full stop instead of a line break, which that vocabulary lacks.
"""

from __future__ import annotations

from collections.abc import Callable

from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.small import stories
from catekv.tasks.small.parts import LIST_TOKENS, story_plan

#: lines of an answer: as many as that model was taught to list
_LINES = 4


def _listed(request: BuildRequest, index: int, backwards: bool) -> Plan:
    asked = stories.listed(story_seed(request, index), _LINES, backwards)
    begun = {"begun": asked.answer_prefix}
    return story_plan(asked, {"small": begun}, max_new_tokens=LIST_TOKENS)


def copy_long(request: BuildRequest, index: int) -> Plan:
    """What was noted for four names, in the order of the text."""
    return _listed(request, index, backwards=False)


def reverse(request: BuildRequest, index: int) -> Plan:
    """The same, the last one first."""
    return _listed(request, index, backwards=True)


def add_chain(request: BuildRequest, index: int) -> Plan:
    """A value handed on four times: every name follows from the text and the name before it."""
    asked = stories.chain(story_seed(request, index), _LINES)
    return story_plan(asked, {"small": {"begun": "", "words": True}})


EXERCISES: dict[str, Callable[[BuildRequest, int], Plan]] = {
    "copy_long": copy_long,
    "reverse": reverse,
    "add_chain": add_chain,
}


def lines(prediction: str, sample: Sample) -> tuple[str, list[str]]:
    """Prediction and right answer with a line break behind every line."""
    small = sample.scoring["small"]
    (answer,) = sample.outputs
    texts = [f"{small['begun']} {text}" for text in (prediction, answer)]
    broken = [_broken(text, small.get("words", False)) for text in texts]
    return "\n".join(broken[0]), broken[1]


def _broken(text: str, words: bool) -> list[str]:
    separate = text.partition(" .")[0].split() if words else text.split(" .")
    return [line.strip() for line in separate if line.strip()]
