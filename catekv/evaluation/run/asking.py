"""Asking a model about a sample: which tokens are read first, the answer, and its score.

Every comparison of methods takes this way, so that they agree on what is compressed, on how an
answer ends and on what it is worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import EncodedPrompt, encode
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.decode.context import Context
    from catekv.decode.generation import Generation
    from catekv.decode.sampling import Sampling
    from catekv.model import CateKVModel

#: ``published``: the whole prompt is read before anything is compressed, and so gives the first
#: token of the answer. ``aware``: all but its last token. ``agnostic``: the context without the
#: question.
QUESTIONS = ("published", "aware", "agnostic")


def split_prompt(prompt: EncodedPrompt, question: str) -> tuple[list[int], list[int]]:
    """The ids that are compressed and those that follow; ``question`` is one of
    :data:`QUESTIONS`."""
    if question == "agnostic":
        return prompt.context_ids, prompt.question_ids
    if question == "aware":
        return prompt.ids[:-1], prompt.ids[-1:]
    if question == "published":
        return prompt.ids, []
    raise UserError(f"unknown question mode {question!r}; use {', '.join(QUESTIONS)}")


@dataclass(frozen=True)
class Trial:
    """One sample as token ids, ready to be read and asked."""

    sample: Sample
    context_ids: list[int]
    question_ids: list[int]

    @classmethod
    def of(
        cls,
        sample: Sample,
        tokenizer: Any,
        question: str = "published",
        chat_template: str | None = "auto",
    ) -> Trial:
        return cls(sample, *split_prompt(encode(sample, tokenizer, chat_template), question))

    @property
    def tokens(self) -> int:
        """Of the whole prompt."""
        return len(self.context_ids) + len(self.question_ids)


def as_prompt(ids: Sequence[list[int]]) -> Any:
    """One prompt as it is, several as a batch."""
    return ids[0] if len(ids) == 1 else list(ids)


def ask(
    model: CateKVModel,
    context: Context,
    trials: Sequence[Trial],
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
) -> Generation:
    """Answers to one question per sequence of a context.

    Args:
        trials: their samples end their answers by the same rules.
        max_new_tokens: instead of the samples' own.
        sampling: how tokens are drawn; None: greedily.
    """
    sample = trials[0].sample
    return model.generate_ids(
        as_prompt([trial.question_ids for trial in trials]),
        context,
        max_new_tokens or sample.max_new_tokens,
        stop=sample.stop or None,
        min_new_tokens=sample.min_new_tokens,
        **({} if sampling is None else dataclasses.asdict(sampling)),
    )


def text_of(model: CateKVModel, generation: Generation, place: int = 0) -> str:
    """One answer of a batch as text."""
    if generation.texts is not None:
        return generation.texts[place]
    return str(model.tokenizer.decode(generation.rows[place], skip_special_tokens=True))


def official_scores(texts: Sequence[str], sample: Sample) -> list[float]:
    """The task's official score of every answer, each in [0, 1]."""
    scores = {text: float(tasks.score(text, sample)["official"]) for text in dict.fromkeys(texts)}
    return [scores[text] for text in texts]


def scored(predictions: Sequence[str], sample: Sample) -> dict[str, Any]:
    """The scores of a sample's answers, averaged over them, as fields of a record."""
    found = [tasks.score(prediction, sample) for prediction in predictions]
    means = {name: fmean(scores[name] for scores in found) for name in found[0]}
    return {
        "official": means.pop("official"),
        "strict": means.pop("strict", None),
        "scores": means,
    }
