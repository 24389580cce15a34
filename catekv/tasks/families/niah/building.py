"""Build needle-in-a-haystack samples: prose cut to the length, needles behind its sentences."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, cycle
from random import Random
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.depths import cell, read_depths
from catekv.tasks.drawing.drawn_samples import Plan, fitted
from catekv.tasks.drawing.essay import essay_from_path, file_sentences, prose_name
from catekv.tasks.drawing.needle_grid import ends_of_tokens, insertion_point, needle_depths
from catekv.tasks.families.niah.facts import Fact, fact
from catekv.tasks.families.niah.options import HaystackOptions
from catekv.tasks.wording.hay import Prose, paragraph

#: words of prose that the shortest text has
_MINIMUM = 8


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples of a grid; sample ``index`` is a cell of it.

    See :func:`catekv.tasks.drawing.depths.cell`.

    Raises:
        UserError: the length is too short for needle, question and answer; the text holds the
            answer a second time; the tokenizer does not know words of the needle, or cannot say
            where its tokens stand though ``insertion="tokens"`` needs that.
    """
    options = request.options
    assert isinstance(options, HaystackOptions)
    if request.length < 1:
        raise UserError(f"length={request.length}; a length of at least 1 is needed")
    depths = read_depths(options.depths)
    for index in range(request.first, request.first + request.count):
        depth, round_ = cell(index, depths, options.rounds)
        hidden = fact(options, request.wording, request.random(index, "fact"))
        _check_words(request, hidden)
        notes = {"depth": depth, "round": round_, **hidden.notes}
        plan = Plan(_drafts(request, index, hidden, depth, notes), _MINIMUM)
        sample = fitted(request, index, plan)
        _check_single(sample, hidden)
        if options.essay_path:
            named = {**sample.metadata, "data": prose_name(options.essay_path)}
            sample = replace(sample, metadata=named)
        yield sample


def _drafts(
    request: BuildRequest, index: int, hidden: Fact, depth: float, notes: dict[str, Any]
) -> Callable[[int, int], Parts]:
    options = request.options
    prose = Prose(_sentences(request, request.random(index, "text")))
    at = needle_depths(depth, len(hidden.needles))
    opening = paragraph(hidden.instruction)

    @lru_cache(maxsize=2)  # the search looks at one text twice: estimated, then counted
    def draft(units: int, extra: int) -> Parts:
        sentences = prose.sentences(units)
        if options.insertion == "tokens":
            places = _token_places(request.tokenizer, " ".join(sentences), at)
        else:
            places = _text_places(sentences, at)
        placed = zip(places, hidden.needles, strict=True)
        text, starts = _with_needles(" ".join(sentences), placed)
        context = paragraph(hidden.instruction, text)
        return Parts(
            context=context,
            question=hidden.question,
            answer_prefix=f" {hidden.answer_prefix}" if hidden.answer_prefix else "",
            outputs=hidden.outputs,
            max_new_tokens=request.answer_tokens,
            wording=request.wording.name,
            depths=tuple((len(opening) + start) / len(context) for start in starts),
            metadata=notes,
        )

    return draft


def _sentences(request: BuildRequest, random: Random) -> Iterator[str]:
    """Prose without end: of the user or generated; the same in all samples for a fixed fact."""
    path, fixed = request.options.essay_path, request.options.fact == "fixed"
    if path and fixed:
        return cycle(file_sentences(path))
    if path:
        return essay_from_path(path, random)
    if fixed:
        random = generator(request.stream, request.seed, request.task.name, "text of all samples")
    return request.wording.essay(random)


def _text_places(sentences: Sequence[str], depths: Sequence[float]) -> list[int]:
    """Offsets behind the last sentence that ends before each depth, counted in characters."""
    lengths = (len(sentence) + (number > 0) for number, sentence in enumerate(sentences))
    ends = [0, *accumulate(lengths)]
    return [ends[bisect_right(ends, ends[-1] * depth / 100) - 1] for depth in depths]


def _token_places(tokenizer: Any, text: str, depths: Sequence[float]) -> list[int]:
    """The same counted in tokens, by the original's rule."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "insertion=tokens needs a fast tokenizer, which says where its tokens stand in the "
            "text; take insertion=text"
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    flags = ends_of_tokens(text, offsets)
    points = [insertion_point(flags, depth) for depth in depths]
    return [offsets[point - 1][1] if point else 0 for point in points]


def _with_needles(text: str, needles: Iterable[tuple[int, str]]) -> tuple[str, list[int]]:
    """The text with every needle at its offset, and where the needles start.

    Needles come in the order of their offsets.
    """
    parts: list[str] = []
    starts: list[int] = []
    length = begin = 0
    for place, needle in needles:
        before = text[begin:place].strip()
        if before:
            parts.append(before)
            length += len(before) + 1
        starts.append(length)
        parts.append(needle)
        length += len(needle) + 1
        begin = place
    rest = text[begin:].strip()
    return " ".join([*parts, rest] if rest else parts), starts


def _check_words(request: BuildRequest, hidden: Fact) -> None:
    unknown = getattr(request.tokenizer, "unk_token_id", None)
    if unknown is None or request.options.needle is None:
        return
    for text in (*hidden.needles, hidden.question, hidden.answer_prefix):
        if unknown in request.format.tokens(text):
            raise UserError(
                f"the tokenizer does not know every word of {text!r}; take words that it knows"
            )


def _check_single(sample: Sample, hidden: Fact) -> None:
    """A text that gives the answer elsewhere too measures nothing."""
    text, needles = sample.context.lower(), " ".join(hidden.needles).lower()
    for answer in hidden.outputs:
        if text.count(answer.lower()) > needles.count(answer.lower()):
            raise UserError(
                f"the text holds the answer {answer!r} outside the needle too; take another "
                "needle or other essays"
            )
