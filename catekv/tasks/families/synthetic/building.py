"""Build ``synthetic`` samples: whole paragraphs up to the length, the code's always among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.depths import cell
from catekv.tasks.drawing.drawn_samples import Plan, fitted
from catekv.tasks.families.synthetic import compat
from catekv.tasks.families.synthetic.options import SyntheticOptions
from catekv.tasks.families.synthetic.texts import Secret, paragraph, secret
from catekv.tasks.wording.hay import cut_sentence

#: words that the last paragraph may have instead of its sentences, to fill the length
_LAST_WORDS = 80


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples of a grid of depths; sample ``index`` is a cell of it.

    Raises:
        UserError: the length is too short for the code's paragraph, question and answer.
    """
    options = request.options
    assert isinstance(options, SyntheticOptions)
    if request.length < 1:
        raise UserError(f"length={request.length}; a length of at least 1 is needed")
    percents = options.percents()
    for index in range(request.first, request.first + request.count):
        if options.compat:
            yield compat.sample(request, index)
            continue
        depth, round_ = cell(index, percents, options.rounds)
        notes = {"depth": depth, "round": round_}
        plan = Plan(_drafts(request, index, depth, notes), 0, extra_limit=_LAST_WORDS)
        yield fitted(request, index, plan)


def _drafts(
    request: BuildRequest, index: int, depth: float, notes: dict[str, Any]
) -> Callable[[int, int], Parts]:
    hidden = secret(request.wording, request.random(index, "code"))
    prose = request.wording.essay(request.random(index, "filler"))
    own = f"{next(prose)} {hidden.sentence}"
    others: list[str] = []

    @lru_cache(maxsize=2)  # the search looks at one text twice: estimated, then counted
    def draft(units: int, extra: int) -> Parts:
        while len(others) <= units:
            others.append(paragraph(prose))
        texts = others[:units]
        if extra:
            texts.append(cut_sentence(others[units], extra))
        place = min(int(depth / 100 * (len(texts) + 1)), len(texts))
        texts.insert(place, own)
        context = _document(hidden, texts)
        return Parts(
            context=context,
            question=hidden.question,
            answer_prefix=hidden.answer_prefix,
            outputs=(hidden.code,),
            max_new_tokens=request.answer_tokens,
            wording=request.wording.name,
            depths=(context.rfind(hidden.sentence) / len(context),),
            metadata={**notes, "paragraphs": len(texts), "key_paragraph": place + 1},
        )

    return draft


def _document(hidden: Secret, texts: list[str]) -> str:
    numbered = [hidden.paragraph(number, text) for number, text in enumerate(texts, 1)]
    return "\n\n".join([*hidden.opening, *numbered]) + "\n\n"
