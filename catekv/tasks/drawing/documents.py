"""Questions about paragraphs: from the synthetic world, or SQuAD and HotpotQA files of the user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from catekv.errors import UserError
from catekv.files import read_json
from catekv.tasks.drawing.world import Question
from catekv.tasks.rows.sources import data_name


@dataclass(frozen=True)
class Corpus:
    """A file of questions over paragraphs; ``paragraphs`` are unique and sorted.

    ``data`` is the file's name and hash.
    """

    paragraphs: tuple[str, ...]
    questions: tuple[Question, ...]
    data: str

    def question(self, index: int, random: Random) -> Question:
        """Question ``index`` of a drawn order of all questions; the order repeats at its end."""
        order = list(range(len(self.questions)))
        random.shuffle(order)
        return self.questions[order[index % len(order)]]

    def others(self, question: Question, random: Random) -> Iterator[str]:
        """All paragraphs that do not belong to the question, in drawn order."""
        own = {*question.gold, *question.near}
        order = list(range(len(self.paragraphs)))
        random.shuffle(order)
        return (self.paragraphs[i] for i in order if self.paragraphs[i] not in own)


def _load(path: str) -> Any:
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"cannot read the questions: {error}") from error


@cache
def squad(path: str) -> Corpus:
    """SQuAD v2 JSON: answerable questions, every annotated answer, one gold paragraph each.

    The other paragraphs of the article are the look-alikes.

    Raises:
        UserError: unreadable file or another layout.
    """
    try:
        articles = [
            [(paragraph["context"].strip(), paragraph["qas"]) for paragraph in entry["paragraphs"]]
            for entry in _load(path)["data"]
        ]
        questions = [
            Question(
                text=item["question"].strip(),
                outputs=tuple(dict.fromkeys(answer["text"] for answer in item["answers"])),
                gold=(context,),
                near=tuple(dict.fromkeys(other for other, _ in article if other != context)),
            )
            for article in articles
            for context, items in article
            for item in items
            if not item.get("is_impossible", False) and item["answers"]
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not SQuAD v2 JSON (data > paragraphs > qas): {error}") from None
    paragraphs = sorted({context for article in articles for context, _ in article})
    return _corpus(path, paragraphs, questions)


@cache
def hotpotqa(path: str) -> Corpus:
    """HotpotQA distractor JSON: a document is title, newline and its sentences.

    The paragraphs named in ``supporting_facts`` are gold, the other own ones look-alikes; without
    that field all own paragraphs are gold.

    Raises:
        UserError: unreadable file or another layout.
    """
    paragraphs: set[str] = set()
    questions: list[Question] = []
    try:
        for item in _load(path):
            own = {title: f"{title}\n{''.join(text)}" for title, text in item["context"]}
            paragraphs.update(own.values())
            facts = {title for title, _ in item.get("supporting_facts", ())} or set(own)
            questions.append(
                Question(
                    text=item["question"].strip(),
                    outputs=(str(item["answer"]),),
                    gold=tuple(text for title, text in own.items() if title in facts),
                    near=tuple(text for title, text in own.items() if title not in facts),
                )
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not HotpotQA JSON (question, answer, context): {error}"
        ) from None
    return _corpus(path, sorted(paragraphs), questions)


def _corpus(path: str, paragraphs: list[str], questions: list[Question]) -> Corpus:
    if not questions:
        raise UserError(f"{path} holds no answerable question")
    for question in questions:
        if not question.gold:
            raise UserError(f"{path}: no paragraph supports the question {question.text!r}")
        if not all(answer.strip() for answer in question.outputs):
            # a blank reference would be found in every answer
            raise UserError(f"{path}: the question {question.text!r} has a blank answer")
    return Corpus(tuple(paragraphs), tuple(questions), data_name(Path(path)))
