"""What is read and then forced: pieces of text with their continuation, and prompts of tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.columns.settings import stable_hash
from catekv.evaluation.fidelity.settings import PROSE, Settings
from catekv.evaluation.run.asking import Trial
from catekv.files import read_text
from catekv.tasks.building import find_wording, generate
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.token_ids import beginning_ids, leading_ids

TEXT, ANSWERS = "text", "answers"
#: tokens that a generated sentence surely has: it is tokenised a few times, not once a sentence
_SENTENCE = 8


@dataclass(frozen=True)
class Passage:
    """A context, and what follows it: ``continuation``, or the full model's own answer to
    ``trial`` where that is None."""

    source: str
    length: int
    index: int
    context_ids: list[int]
    continuation: list[int] | None = None
    trial: Trial | None = None

    @property
    def kind(self) -> str:
        return TEXT if self.trial is None else ANSWERS

    @property
    def question_ids(self) -> list[int]:
        return [] if self.trial is None else self.trial.question_ids

    @cached_property
    def digest(self) -> str:
        """Of its token ids."""
        return stable_hash([self.context_ids, self.question_ids, self.continuation])


def passages_of(settings: Settings, tokenizer: Any) -> list[list[Passage]]:
    """All passages, in the groups that are read at once: of one source and one length.

    Raises:
        UserError: a text that is shorter than a length or cannot be read, an unknown task.
    """
    cells = [
        list(_cut(source, length, settings, tokenizer))
        for source in settings.texts
        for length in settings.lengths
    ]
    cells += [
        list(_prompts(task, length, settings, tokenizer))
        for task in settings.tasks
        for length in settings.lengths
    ]
    size = settings.batch_size
    return [cell[i : i + size] for cell in cells for i in range(0, len(cell), size)]


def _cut(source: str, length: int, settings: Settings, tokenizer: Any) -> Iterator[Passage]:
    context = length - settings.forced
    pieces = pieces_of(source, length, settings.samples, settings.seed, tokenizer)
    for index, piece in enumerate(pieces):
        yield Passage(source, length, index, piece[:context], piece[context:])


def pieces_of(
    source: str, length: int, count: int, seed: int, tokenizer: Any, stream: str = "fidelity"
) -> list[list[int]]:
    """Ids of pieces of ``length`` tokens that do not overlap, ``count`` of them at most.

    Args:
        source: a file, or ``prose``, which is generated.
        stream: of random numbers; texts of other streams are others.

    Raises:
        UserError: a text that is shorter than the length or cannot be read.
    """
    if source == PROSE:
        return [_prose(tokenizer, length, seed, index, stream) for index in range(count)]
    ids = beginning_ids(tokenizer, read_text(source))
    if len(ids) < length:
        raise UserError(
            f"{source} has {len(ids)} tokens, fewer than the length of {length}; give a longer "
            "text or a smaller length"
        )
    lead = leading_ids(tokenizer)
    pieces = [ids[:length]]
    step = length - len(lead)
    if step < 1:
        raise UserError(
            f"pieces of {length} tokens hold nothing but what begins every text; give a larger "
            "length"
        )
    for start in range(length, len(ids) - step + 1, step):
        pieces.append([*lead, *ids[start : start + step]])
    return pieces[:count]


def _prose(tokenizer: Any, length: int, seed: int, index: int, stream: str) -> list[int]:
    """Ids of generated prose in the tokenizer's wording, whatever the length."""
    sentences = find_wording(None, tokenizer).essay(generator(stream, seed, index))
    parts: list[str] = []
    ids: list[int] = []
    while len(ids) < length:
        parts += itertools.islice(sentences, 1 + (length - len(ids)) // _SENTENCE)
        ids = beginning_ids(tokenizer, " ".join(parts))
    return ids[:length]


def _prompts(task: str, length: int, settings: Settings, tokenizer: Any) -> Iterator[Passage]:
    samples = generate(
        task,
        tokenizer,
        length,
        settings.samples,
        settings.seed,
        chat_template=settings.chat_template,
    )
    for sample in samples:
        trial = Trial.of(sample, tokenizer, settings.question, settings.chat_template)
        yield Passage(task, length, sample.index, trial.context_ids, trial=trial)
