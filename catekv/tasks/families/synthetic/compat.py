"""The task as it was published with ATSKV, for regression tests only: never for results.

What was published has defects that are kept here: the code follows from the document's number, the
filler repeats itself, the position of the code is only estimated when the text is cut, so that it
can be lost, no room is left for the answer, and no document is longer than its hundred paragraphs.
The words are ours; numbers, positions and the rule of the cut are the published ones.
"""

from __future__ import annotations

from catekv.errors import UserError
from catekv.tasks.core.prompt import WITHOUT_TEMPLATE, prompt_format
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.wording.small import SmallWording

#: paragraphs of a document, and where its code stands by document number modulo 3
PARAGRAPHS = 100
PLACES = (5, 50, 95)
#: tokens set aside besides those of the question
_RESERVED = 3


def code(document: int) -> str:
    """The published code of a document, numbered from 0."""
    return f"XYZ-{42 * document}-ABC"


def _paragraph(number: int) -> str:
    repeated = " ".join(
        ["It adds nothing to what the others say and may be skipped by readers."] * 3
    )
    return (
        f"Paragraph {number}: this part of the document deals with matter number {number} and with "
        f"everything that belongs to it. {repeated}"
    )


def text(document: int) -> str:
    """A whole document: 99 numbered paragraphs and one with the code."""
    parts = [_paragraph(number) for number in range(PARAGRAPHS)]
    parts[PLACES[document % 3]] = f"The secret code of document {document} is {code(document)}."
    return "\n\n".join(parts)


def cut(tokens: list[int], place: int, budget: int) -> list[int]:
    """The published cut of a document to ``budget`` tokens.

    The code is taken to stand at ``place`` times a hundredth of the tokens. Within the budget the
    beginning is kept; otherwise half of the budget goes to the beginning and the rest lies around
    that place, which may end before the budget is used.
    """
    if len(tokens) <= budget:
        return tokens
    estimate = place * (len(tokens) // PARAGRAPHS)
    if estimate < budget:
        return tokens[:budget]
    head = budget // 2
    rest = budget - head
    start = max(0, estimate - rest // 2)
    return tokens[:head] + tokens[start : start + rest]


def sample(request: BuildRequest, index: int) -> Sample:
    """Document ``index`` cut to ``request.length``; BOS, context, EOS, question, in no template.

    ``length`` counts the answer too and may exceed ``target_length``, because the published budget
    has no room for it; ``metadata["key_kept"]`` says whether the code survived the cut.

    Raises:
        UserError: the tokenizer is the embedded model's, or the length has no room for the text.
    """
    if isinstance(request.wording, SmallWording):
        raise UserError(
            "synthetic with compat=true is English, which the small wording's tokenizer cannot "
            "read; leave compat out"
        )
    wrapped = prompt_format(request.tokenizer, "none")
    question = f"What is the secret code of document {index}?"
    budget = request.length - len(wrapped.tokens(question)) - _RESERVED
    if budget < 2:
        raise UserError(
            f"synthetic needs more than {request.length} tokens for its question; raise the length"
        )
    place, whole = PLACES[index % 3], wrapped.tokens(text(index))
    kept = cut(whole, place, budget)
    context = text(index)
    if len(kept) < len(whole):
        context = str(request.tokenizer.decode(kept, skip_special_tokens=True))
    ending = (getattr(request.tokenizer, "eos_token", None) or "") + question
    answer = request.answer_tokens
    found = context.rfind(code(index))
    return Sample(
        task=request.task.name,
        index=index,
        context=context,
        question=ending,
        answer_prefix="",
        outputs=(code(index),),
        max_new_tokens=answer,
        length=len(wrapped.encode(context, ending, "")) + answer,
        target_length=request.length,
        metric=request.task.metric,
        wording=request.wording.name,
        depths=(found / len(context),) if found >= 0 else (),
        metadata={
            **request.shared(),
            **WITHOUT_TEMPLATE,
            "data": "built-in",
            "depth": float(place),
            "round": index // 3,
            "natural_tokens": len(whole),
            "key_kept": found >= 0,
        },
    )
