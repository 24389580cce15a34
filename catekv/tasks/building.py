"""Build samples of any task: find the wording, check the request, ask the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from catekv.errors import UserError
from catekv.tasks.prompt import prompt_format
from catekv.tasks.registry import find
from catekv.tasks.ruler.wording import Wording
from catekv.tasks.sample import Sample
from catekv.tasks.task import BuildRequest, answer_tokens
from catekv.tasks.tokenizers import tokenizer_hash


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


def max_new_tokens(name: str, wording: Wording | None = None) -> int:
    """New tokens allowed for the answer of a task; a wording may need another allowance."""
    return answer_tokens(find(name), wording)


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
    if min(count, length, first) < 0:
        raise UserError(f"length={length}, count={count}, first={first}; none may be negative")
    if max_answer_tokens is not None and max_answer_tokens < 1:
        raise UserError(f"max_answer_tokens={max_answer_tokens}; it must be at least 1")
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
        wording=find_wording(wording, tokenizer, words_path),
        chat_template=chat_template,
        max_answer_tokens=max_answer_tokens,
        format=prompt_format(tokenizer, chat_template),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    yield from task.generate(request)
