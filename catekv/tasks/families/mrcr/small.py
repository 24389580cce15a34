"""MRCR in the vocabulary of the embedded model: several values noted for one name.

It knows no ordinals, so the answer is begun with the values that come first, and the next one is
the text that is meant; there is no string in front.
"""

from __future__ import annotations

from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.small.parts import story_plan
from catekv.tasks.small.stories import counted_off

#: values that the model was taught to list
MOST = 4


def plan(request: BuildRequest, index: int, needles: int) -> Plan:
    seed = story_seed(request, index)
    place = request.random(index, "asked").randrange(needles)
    asked = counted_off(seed, needles, place)
    texts = list(asked.wrong)
    texts.insert(place, asked.answer)
    return story_plan(asked, {"prefix": "", "texts": texts, "instance": place, "stop": " ."})
