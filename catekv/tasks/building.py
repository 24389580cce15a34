"""Build samples: plan, fit to the length through the model's real input path, check."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from catekv.errors import UserError
from catekv.tasks.fit import TooLongError, WordCounter, confirmed_fit
from catekv.tasks.prompt import PromptFormat, prompt_format
from catekv.tasks.registry import PREFIX, Task, find
from catekv.tasks.ruler.plan import Draft, Request
from catekv.tasks.ruler.wording import Wording
from catekv.tasks.sample import Sample

#: every sample fills at least this share of its target length
MINIMUM_FILL = 0.97
#: below this share words of filler are added to the whole units
_TOP_UP_BELOW = 0.99


def find_wording(
    wording: str | Wording | None, tokenizer: Any, words_path: str | None = None
) -> Wording:
    """A wording by name or as it is; None: what the tokenizer declares, else English.

    A tokenizer declares its wording by ``catekv_wording`` in ``tokenizer_config.json``.
    """
    if wording is None:
        wording = getattr(tokenizer, "init_kwargs", {}).get("catekv_wording", "english")
    if isinstance(wording, Wording):
        return wording
    if wording == "english":
        from catekv.tasks.ruler.english import EnglishWording

        return EnglishWording(words_path)
    if wording == "small":
        from catekv.tasks.ruler.small_wording import SmallWording

        return SmallWording()
    raise UserError(f"unknown wording {wording!r}; use 'english', 'small' or a Wording")


@dataclass(frozen=True)
class _Known:
    """What is worked out once per tokenizer: both take long for large vocabularies."""

    counter: WordCounter
    hash: str


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def _known(tokenizer: Any) -> _Known:
    if tokenizer not in _KNOWN:
        vocabulary = sorted(tokenizer.get_vocab().items())
        digest = hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]
        _KNOWN[tokenizer] = _Known(WordCounter(), digest)
    return _KNOWN[tokenizer]


def tokenizer_hash(tokenizer: Any) -> str:
    """Sixteen hexadecimal digits that tell tokenizers with different vocabularies apart."""
    return _known(tokenizer).hash


def max_new_tokens(name: str, wording: Wording | None = None) -> int:
    """New tokens allowed for the answer of a task; a wording may need another allowance."""
    task = find(name)
    return (wording.max_new_tokens if wording else {}).get(task.name, task.max_new_tokens)


def generate(
    name: str,
    tokenizer: Any,
    length: int,
    count: int,
    seed: int = 42,
    *,
    first: int = 0,
    stream: str = "test",
    wording: str | Wording | None = None,
    chat_template: str | None = "auto",
    max_answer_tokens: int | None = None,
    words_path: str | None = None,
    **options: Any,
) -> Iterator[Sample]:
    """Samples one by one; see :func:`catekv.tasks.build`."""
    task = find(name)
    settings = task.configured(options)
    language = find_wording(wording, tokenizer, words_path)
    if task.name not in language.tasks:
        raise UserError(
            f"the wording {language.name!r} cannot express {PREFIX}{task.name}; it can express "
            + ", ".join(PREFIX + known for known in sorted(language.tasks))
        )
    if count < 0 or length < 1:
        raise UserError(f"length={length}, count={count}; a length of at least 1 is needed")
    wrapped = prompt_format(tokenizer, chat_template)
    answer_tokens = max_answer_tokens or max_new_tokens(task.name, language)
    shared = {
        "seed": seed,
        "stream": stream,
        "options": dict(options),
        "tokenizer": getattr(tokenizer, "name_or_path", ""),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "chat_template": chat_template or "base",
    }
    key = (stream, seed, task.name, length)
    counter = _known(tokenizer).counter
    for index in range(first, first + count):
        request = Request(key, index, length, language, lambda text: len(wrapped.tokens(text)))
        yield _sample(task, settings, request, wrapped, counter, answer_tokens, shared)


def _sample(
    task: Task,
    settings: Any,
    request: Request,
    wrapped: PromptFormat,
    counter: WordCounter,
    answer_tokens: int,
    shared: dict[str, Any],
) -> Sample:
    """One sample, fitted."""
    plan = task.plan(request, settings)

    def draft(units: int, extra: int = 0) -> Draft:
        made = plan.draft(units, extra)
        prefix = made.answer_prefix
        separate = " " if prefix and not prefix[0].isspace() else ""
        return replace(made, answer_prefix=separate + prefix)

    def exact(made: Draft) -> int:
        return len(wrapped.encode(made.context, made.question, made.answer_prefix))

    def estimate(made: Draft) -> int:
        text = made.context + made.question + wrapped.after + made.answer_prefix
        return counter(wrapped.tokenizer, wrapped.before + text)

    budget = request.length - answer_tokens
    try:
        units, tokens = confirmed_fit(
            lambda units: estimate(draft(units)),
            lambda units: exact(draft(units)),
            plan.minimum,
            budget,
            plan.limit,
        )
    except TooLongError as error:
        raise UserError(
            f"{PREFIX}{task.name} needs a length of at least {error.tokens + answer_tokens} tokens "
            f"with this tokenizer, {request.length} are given; raise the length"
        ) from None
    extra = 0
    if plan.extra_limit and tokens + answer_tokens < _TOP_UP_BELOW * request.length:
        extra, tokens = confirmed_fit(
            lambda extra: estimate(draft(units, extra)),
            lambda extra: exact(draft(units, extra)),
            0,
            budget,
            plan.extra_limit,
            step=2,
        )
    length = tokens + answer_tokens
    if length < MINIMUM_FILL * request.length:
        raise UserError(
            f"{PREFIX}{task.name} reaches only {length} of {request.length} tokens: the text it is "
            "made of is used up; give more text or a smaller length"
        )
    final = draft(units, extra)
    return Sample(
        task=PREFIX + task.name,
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
        metadata={**shared, **final.notes},
    )
