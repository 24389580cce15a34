"""Benchmark tasks: build, read, write and score samples. Knows nothing of models.

``tasks.build("ruler/vt", tokenizer, length=4096, count=8)`` makes samples,
:func:`catekv.tasks.prompt.encode` turns one into token ids, ``tasks.score`` rates an answer.
"""

from __future__ import annotations

from typing import Any

from catekv.tasks import metrics, prompt
from catekv.tasks.building import generate, max_new_tokens
from catekv.tasks.files import read, write
from catekv.tasks.registry import available, find
from catekv.tasks.ruler.tasks import PUBLISHED, RULER
from catekv.tasks.ruler.wording import Wording
from catekv.tasks.sample import Sample

__all__ = [
    "PUBLISHED",
    "RULER",
    "Sample",
    "available",
    "build",
    "find",
    "generate",
    "max_new_tokens",
    "metric",
    "metrics",
    "prompt",
    "read",
    "score",
    "write",
]


def build(
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
) -> list[Sample]:
    """Make samples of a task.

    Sample ``i`` depends on (seed, task, length, i), the tokenizer and the options only: not on
    ``count``, on order or on other samples.

    Args:
        name: one of :func:`available`.
        tokenizer: of the model that will read the samples; the length is counted through it.
        length: tokens of the prompt (chat template, BOS and answer prefix included) plus the new
            tokens. Generated samples fill 0.97 to 1.0 of it; where samples come from data it is a
            limit, and 0 is none.
        count: how many samples, with indices ``first`` to ``first + count - 1``; where samples come
            from data there may be fewer.
        stream: samples of different streams never share their random draws; ``"test"`` is for
            tests, calibration uses a stream of its own.
        wording: ``"english"``, ``"small"`` or an object; None asks the tokenizer, else English.
        chat_template: see :func:`catekv.tasks.prompt.prompt_format`.
        max_answer_tokens: new tokens to leave room for; default by task.
        words_path: word list to draw keys and common words from (file or folder).
        options: difficulty and data of the task, e.g. ``num_keys``, ``depth``, ``num_hops``,
            ``alpha``, ``essay_path``, ``squad_path``, ``hotpotqa_path``.

    Raises:
        UserError: unknown task, option or wording; a length that is too short (the message says
            the shortest possible); unreadable data.
    """
    return list(
        generate(
            name,
            tokenizer,
            length,
            count,
            seed,
            first=first,
            stream=stream,
            wording=wording,
            chat_template=chat_template,
            max_answer_tokens=max_answer_tokens,
            words_path=words_path,
            **options,
        )
    )


def metric(name: str) -> str:
    """Short name of a task's official score, e.g. ``"all"``, ``"part"``, ``"qa_f1"``."""
    return find(name).metric


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of one answer, each in [0, 1].

    Returns:
        ``official``: the benchmark's own score; ``strict``: the same without its leniencies (equal
        where it has none); and further scores by name, as the task's family explains.
    """
    return find(sample.task).score(prediction, sample)
