"""Build samples of any task: find the wording, check the request, ask the task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

from catekv.errors import UserError
from catekv.tasks.core.prompt import prompt_format, template_name
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Task, answer_tokens
from catekv.tasks.core.tokenizers import tokenizer_hash
from catekv.tasks.core.wording import Wording
from catekv.tasks.registry import find
from catekv.tasks.small.parts import is_small

Arguments = ParamSpec("Arguments")


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
        from catekv.tasks.wording.english import EnglishWording

        return EnglishWording(words_path)
    if wording == "small":
        from catekv.tasks.wording.small import SmallWording

        return SmallWording()
    raise UserError(f"unknown wording {wording!r}; use 'english', 'small' or a Wording")


#: Tokens of a sample: its text is built, and its tokens are counted, as a whole in memory.
LONGEST = 2**24


def max_new_tokens(name: str, wording: Wording | None = None) -> int:
    """New tokens allowed for the answer of a task; a wording may need another allowance."""
    return answer_tokens(find(name), wording)


def _check_counts(length: int, count: int, first: int, max_answer_tokens: int | None) -> None:
    if min(count, length, first) < 0:
        raise UserError(f"length={length}, count={count}, first={first}; none may be negative")
    if length > LONGEST:
        raise UserError(f"length={length}; the text of a sample may have up to {LONGEST} tokens")
    if max_answer_tokens is not None and max_answer_tokens < 1:
        raise UserError(f"max_answer_tokens={max_answer_tokens}; it must be at least 1")


def _refuse_unspoken(task: Task, wording: Wording) -> None:
    if is_small(wording) and not task.small:
        raise UserError(
            f"the embedded model's vocabulary cannot express {task.name}; name a model with --model"
        )


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
    """Samples of a task: one by one from ``generate``, as a list from ``build``.

    Sample ``i`` depends on (seed, task, length, i), the tokenizer and the options only: not on
    ``count``, on order or on other samples.

    Args:
        name: one of :func:`catekv.tasks.available`.
        tokenizer: of the model that will read the samples; the length is counted through it.
        length: tokens of the prompt (chat template, BOS and answer prefix included) plus the new
            tokens. Generated samples fill 0.97 to 1.0 of it; where samples come from data it is a
            limit, and 0 is none.
        count: how many samples, with indices ``first`` to ``first + count - 1``; where samples come
            from data there may be fewer.
        stream: samples of different streams (tests, calibration) never share their random draws.
        wording: ``"english"``, ``"small"`` or an object; None asks the tokenizer, else English.
        chat_template: see :func:`catekv.tasks.core.prompt.prompt_format`.
        max_answer_tokens: new tokens to leave room for; default by task.
        words_path: word list to draw keys and common words from (file or folder).
        options: difficulty and data of the task, e.g. ``num_keys``, ``depth``, ``essay_path``.

    Raises:
        UserError: unknown task, option or wording; a length that is too short (the message says
            the shortest possible); unreadable data. ``generate`` raises when samples are taken.
    """
    task = find(name)
    _check_counts(length, count, first, max_answer_tokens)
    spoken = find_wording(wording, tokenizer, words_path)
    _refuse_unspoken(task, spoken)
    request = BuildRequest(
        task=task,
        options=task.configured(options),
        given=options,
        tokenizer=tokenizer,
        length=length,
        count=count,
        first=first,
        seed=seed,
        stream=stream,
        wording=spoken,
        chat_template=template_name(chat_template),
        max_answer_tokens=max_answer_tokens,
        format=prompt_format(tokenizer, chat_template),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    yield from task.generate(request)


def _as_list(make: Callable[Arguments, Iterator[Sample]]) -> Callable[Arguments, list[Sample]]:
    @functools.wraps(make)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> list[Sample]:
        return list(make(*args, **kwargs))

    build.__name__ = build.__qualname__ = "build"
    return build


#: :func:`generate` with the samples in a list
build = _as_list(generate)
