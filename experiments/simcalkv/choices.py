"""Multiple choice by likelihood: PIQA, OpenBookQA and WinoGrande.

A question is a text and some continuations of it; the model's choice is the continuation that it
finds most likely. WinoGrande puts each option into the gap and rates only what follows it, so that
the options' own likelihood does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.prompt import prompt_format
from catekv.tasks.rows.sources import DataOptions, Hub, Rows, load_rows
from experiments.simcalkv.choice_rows import built_in_rows


@dataclass(frozen=True)
class ChoiceQuestion:
    """A text with its continuations.

    Attributes:
        identifier: the row's own, or its number.
        context: the text that is read.
        options: names of the choices, as they are reported.
        continuations: what follows the context, with the white space before it.
        rated_from: characters of each continuation that come before the rated part.
        correct: index of the right choice.
    """

    identifier: str
    context: str
    options: tuple[str, ...]
    continuations: tuple[str, ...]
    rated_from: tuple[int, ...]
    correct: int


def piqa(position: int, row: Mapping[str, Any]) -> ChoiceQuestion:
    """A row ``goal``, ``sol1``, ``sol2``, ``label`` (0 or 1)."""
    options = (str(row["sol1"]), str(row["sol2"]))
    return _question(
        row.get("id", position),
        str(row["goal"]),
        options,
        _label(row, "label", ("0", "1")),
    )


def openbookqa(position: int, row: Mapping[str, Any]) -> ChoiceQuestion:
    """A row ``question_stem``, ``choices`` (``text`` and ``label``), ``answerKey``."""
    choices = row["choices"]
    if not isinstance(choices, Mapping):
        raise ValueError("field 'choices' is no object with 'text' and 'label'")
    options = tuple(str(text) for text in choices["text"])
    labels = tuple(str(label) for label in choices["label"])
    if len(options) != len(labels) or len(options) < 2:
        raise ValueError(f"field 'choices' has {len(options)} texts and {len(labels)} labels")
    correct = _label(row, "answerKey", labels)
    return _question(row.get("id", position), str(row["question_stem"]), options, correct)


def winogrande(position: int, row: Mapping[str, Any]) -> ChoiceQuestion:
    """A row ``sentence`` with one gap ``_``, ``option1``, ``option2``, ``answer`` (1 or 2)."""
    before, gap, after = str(row["sentence"]).partition("_")
    if not gap or "_" in after:
        raise ValueError("field 'sentence' has not exactly one gap '_'")
    options = (str(row["option1"]), str(row["option2"]))
    correct = _label(row, "answer", ("1", "2"))
    found = _question(row.get("id", position), before.rstrip(), options, correct)
    return ChoiceQuestion(
        found.identifier,
        found.context,
        options,
        tuple(text + after for text in found.continuations),
        tuple(len(text) if after.strip() else 0 for text in found.continuations),
        correct,
    )


def _question(
    identifier: object, context: str, options: tuple[str, ...], correct: int
) -> ChoiceQuestion:
    for number, option in enumerate(options, 1):
        if not option.strip():
            raise ValueError(f"choice {number} of {len(options)} is empty")
    return ChoiceQuestion(
        str(identifier),
        context,
        options,
        tuple(f" {option}" for option in options),
        (0,) * len(options),
        correct,
    )


def _label(row: Mapping[str, Any], name: str, labels: Sequence[str]) -> int:
    label = str(row[name])
    if label not in labels:
        raise ValueError(
            f"field {name!r} is {label!r}, expected one of {', '.join(labels)}; a split without "
            "answers cannot be scored, use validation"
        )
    return labels.index(label)


@dataclass(frozen=True)
class ChoiceData:
    """How a data set is laid out, and where it is on the hub."""

    parse: Callable[[int, Mapping[str, Any]], ChoiceQuestion]
    repository: str
    configuration: str | None = None


CHOICE_DATA = {
    "piqa": ChoiceData(piqa, "ybisk/piqa"),
    "openbookqa": ChoiceData(openbookqa, "allenai/openbookqa", "main"),
    "winogrande": ChoiceData(winogrande, "allenai/winogrande", "winogrande_debiased"),
}


def choice_rows(
    name: str, split: str, options: DataOptions, *, count: int, seed: int, wording: str
) -> Rows:
    """The rows of a data set; see :func:`catekv.tasks.rows.sources.load_rows`."""
    data = CHOICE_DATA[name]
    return load_rows(
        f"choices/{name}",
        options,
        files=[f"{name}_{split}.jsonl", f"{name}.jsonl", f"{name}.json", f"{name}.csv"],
        hub=Hub(data.repository, data.configuration, split),
        built_in=lambda: built_in_rows(name, count, seed, wording),
        how_to_get=f"get the split {split} of {data.repository} from the hub as JSON lines",
    )


def questions(name: str, rows: Rows) -> list[ChoiceQuestion]:
    """The rows as questions; ``UserError`` names file and line of what is wrong."""
    return list(rows.parsed(CHOICE_DATA[name].parse))


@dataclass(frozen=True)
class EncodedChoices:
    """Token ids of a question.

    ``context`` is what is compressed; ``continuations`` begin with the context's last token, whose
    logits rate the first token of the choice, so that nothing is rated by the uncompressed prefill.
    ``rated`` says how many tokens at the end of each are rated.
    """

    context: list[int]
    continuations: tuple[list[int], ...]
    rated: tuple[int, ...]


def encode_choices(question: ChoiceQuestion, tokenizer: Any) -> EncodedChoices:
    """Token ids, in no chat template.

    Raises:
        UserError: the context has fewer than two tokens.
    """
    wrapped = prompt_format(tokenizer, "none")
    ids = wrapped.context_ids(question.context)
    if len(ids) < 2:
        raise UserError(f"question {question.identifier}: its text has fewer than two tokens")
    continuations, rated = [], []
    for text, start in zip(question.continuations, question.rated_from, strict=True):
        own = wrapped.question_ids(question.context, text, "")
        before = len(wrapped.question_ids(question.context, text[:start], "")) if start else 0
        continuations.append([ids[-1], *own])
        rated.append(max(1, len(own) - before))
    return EncodedChoices(ids[:-1], tuple(continuations), tuple(rated))
