"""Build RULER's samples: plan, fit to the length through the model's real input path, check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Task
from catekv.tasks.core.tokenizers import WordCounter, word_counter
from catekv.tasks.drawing.fit import check_filled, filled
from catekv.tasks.families.ruler.plan import Draft, Plan, Request

PREFIX = "ruler/"


@dataclass(frozen=True, kw_only=True)
class RulerTask(Task):
    """A task of RULER.

    ``plan`` makes the draws of one sample; ``family_metric`` is the score that CateKV and ShadowKV
    report for it; ``set_f1`` says whether the answer is a set of words that could be guessed by
    naming everything.
    """

    plan: Callable[[Request, Any], Plan]
    family_metric: Callable[[str, Any], float]
    set_f1: bool = False


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples one by one; see :func:`catekv.tasks.build`."""
    task, language = request.task, request.wording
    assert isinstance(task, RulerTask)
    short = task.name.removeprefix(PREFIX)
    if short not in language.tasks:
        raise UserError(
            f"the wording {language.name!r} cannot express {task.name}; it can express "
            + ", ".join(PREFIX + known for known in sorted(language.tasks))
        )
    if request.length < 1:
        raise UserError(f"length={request.length}; a length of at least 1 is needed")
    key = (request.stream, request.seed, short, request.length)
    counter = word_counter(request.tokenizer)
    wrapped = request.format

    def tokens(text: str) -> int:
        return len(wrapped.tokens(text))

    for index in range(request.first, request.first + request.count):
        single = Request(key, index, request.length, language, tokens)
        yield _sample(task, request, single, counter)


def _sample(task: RulerTask, asked: BuildRequest, request: Request, counter: WordCounter) -> Sample:
    """One sample, fitted."""
    wrapped, answer_tokens = asked.format, asked.answer_tokens
    plan = task.plan(request, asked.options)

    def draft(units: int, extra: int) -> Draft:
        made = plan.draft(units, extra)
        prefix = made.answer_prefix if asked.options.begin_answer else ""
        separate = " " if prefix and not prefix[0].isspace() else ""
        return replace(made, answer_prefix=separate + prefix)

    def exact(units: int, extra: int) -> int:
        made = draft(units, extra)
        return len(wrapped.encode(made.context, made.question, made.answer_prefix))

    def estimate(units: int, extra: int) -> int:
        made = draft(units, extra)
        text = made.context + made.question + wrapped.after + made.answer_prefix
        return counter(wrapped.tokenizer, wrapped.before + text)

    units, extra, length = filled(task.name, plan, estimate, exact, request.length, answer_tokens)
    check_filled(task.name, length, request.length)
    final = draft(units, extra)
    origin = {"data": plan.data}
    if request.wording.word_list is not None:
        origin["words"] = request.wording.word_list
    return Sample(
        task=task.name,
        index=request.index,
        context=final.context,
        question=final.question,
        answer_prefix=final.answer_prefix,
        outputs=plan.outputs,
        max_new_tokens=answer_tokens,
        length=length,
        target_length=request.length,
        metric=task.metric,
        wording=request.wording.name,
        depths=final.depths(),
        metadata={**asked.shared(), **origin, **final.notes},
    )
