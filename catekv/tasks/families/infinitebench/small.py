"""The InfiniteBench tasks in the closed vocabulary of the embedded model.

Whatever looks something up is asked the way that model knows: ``ask NAME ?``, ``trace 47 03 88 ?``.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, story_seed
from catekv.tasks.drawing.growing import Growing
from catekv.tasks.families.infinitebench import small_sums
from catekv.tasks.families.infinitebench.options import swept_depth
from catekv.tasks.families.infinitebench.prompts import LETTERS
from catekv.tasks.small import stories
from catekv.tasks.small.parts import (
    EXTRA,
    FILLER,
    LIST_TOKENS,
    WORDING,
    small_parts,
    story_plan,
    topped_up,
)
from catekv.tasks.small.stories import SmallAsked
from catekv.tasks.wording import spelling
from catekv.tasks.wording.hay import insert

#: facts that the summary of a book lists
_FACTS = 4
#: how many different names there are
_NAMES = 1400
#: values of three numerals, and a stride without common divisor that visits all of them
_VALUES, _STRIDE = 100**3, 381_971


def _joined(value: str) -> dict[str, Any]:
    """Numerals are one number to the rule."""
    return {"label": [value.replace(" ", "")], "spelling": spelling.joined()}


def _needle(request: BuildRequest, index: int, value: str) -> Plan:
    """``note KEY 47 03 88 .`` in filler."""
    depth = swept_depth(request.options.depth, index)
    keys = WORDING.keys("words", 1, request.random(index, "key"))
    needle = WORDING.needle("numbers", keys[0], value)
    question = WORDING.needle_question("numbers", keys, 1)
    prefix = WORDING.needle_answer_prefix("numbers", keys, 1)

    def draft(units: int, extra: int) -> Parts:
        lines = FILLER.lines(units)
        if extra:
            lines.append(FILLER.words(extra))
        text = "\n".join(insert(lines, [(depth, needle)]))
        return small_parts(text, question, prefix, value, _joined(value), mark=needle)

    return Plan(draft, extra_limit=EXTRA)


def passkey(request: BuildRequest, index: int) -> Plan:
    """Three numerals that no other of the first million samples of the request has."""
    number = (request.random(0, "values").randrange(_VALUES) + _STRIDE * index) % _VALUES
    digits = f"{number:06d}"
    return _needle(request, index, f"{digits[:2]} {digits[2:4]} {digits[4:]}")


def number_string(request: BuildRequest, index: int) -> Plan:
    """Three numerals whose digits are doubled: half of all digits repeat the one before."""
    digits = request.random(index, "digits").sample(range(10), 3)
    return _needle(request, index, " ".join(f"{digit}{digit}" for digit in digits))


def kv_retrieval(request: BuildRequest, index: int) -> Plan:
    """Nothing but noted values; when the names are used up, filler stands between them."""
    depth = swept_depth(request.options.depth, index)
    random = request.random(index, "pairs")
    names = WORDING.keys("words", _NAMES, random)
    value = WORDING.variable_value(random)
    wanted = WORDING.needle("numbers", names[0], value)
    values = Growing(WORDING.variable_value, request.random(index, "other values"))
    question = WORDING.needle_question("numbers", names[:1], 1)
    prefix = WORDING.needle_answer_prefix("numbers", names[:1], 1)

    def draft(units: int, extra: int) -> Parts:
        pairs = zip(names[1:], values.first(units), strict=False)
        lines = [WORDING.needle("numbers", *pair) for pair in pairs]
        missing = units - len(lines)
        filler = [(place / (missing + 1), FILLER.lines(1)[0]) for place in range(missing)]
        text = "\n".join(insert(insert(lines, filler), [(depth, wanted)]))
        text = topped_up(text, extra)
        return small_parts(text, question, prefix, value, _joined(value), mark=wanted)

    return Plan(draft, extra_limit=EXTRA)


def longbook_qa(request: BuildRequest, index: int) -> Plan:
    """A value noted in an essay."""
    return story_plan(stories.needles(story_seed(request, index)))


def option_letters(asked: SmallAsked, random: Random) -> dict[str, str]:
    """Every option of a choice with its letter, which this vocabulary cannot write."""
    options = random.sample([asked.answer, *asked.wrong], 1 + len(asked.wrong))
    return dict(zip(options, LETTERS, strict=False))


def longbook_choice_eng(request: BuildRequest, index: int) -> Plan:
    """A value noted in an essay, among those noted for others."""
    asked = stories.needles(story_seed(request, index))
    letters = option_letters(asked, request.random(index, "options"))
    label = [asked.answer, letters[asked.answer]]
    return story_plan(asked, {"label": label, "spelling": spelling.named(letters)})


def longdialogue_qa_eng(request: BuildRequest, index: int) -> Plan:
    """The name that a value was passed to."""
    asked = stories.chain(story_seed(request, index), 1)
    return story_plan(asked, {"label": [asked.answer.upper()]})


def longbook_sum_eng(request: BuildRequest, index: int) -> Plan:
    """All values noted for one name."""
    asked = stories.summary(story_seed(request, index), _FACTS)
    return story_plan(asked, max_new_tokens=LIST_TOKENS)


#: by the name without ``infinitebench/``
PLANS: dict[str, Callable[[BuildRequest, int], Plan]] = {
    "passkey": passkey,
    "number_string": number_string,
    "kv_retrieval": kv_retrieval,
    "longbook_sum_eng": longbook_sum_eng,
    "longbook_choice_eng": longbook_choice_eng,
    "longbook_qa_eng": longbook_qa,
    "longbook_qa_chn": longbook_qa,
    "longdialogue_qa_eng": longdialogue_qa_eng,
    "math_find": small_sums.math_find,
    "math_calc": small_sums.math_calc,
    "code_run": small_sums.code_run,
    "code_debug": small_sums.code_debug,
}
