"""Rows of LongBench v2: JSON as published, and pairs of a Markdown file and a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.files import read_text
from catekv.tasks.rows.rows import naming, shown, text_field

LETTERS = ("A", "B", "C", "D")
DIFFICULTIES, LENGTHS = ("easy", "hard"), ("short", "medium", "long")
_CONTEXT_ENDING = "_context.txt"
_HEADING = re.compile(r"^# (Metadata|Question|Choices|Answer)[ \t]*$", re.MULTILINE)
_CHOICE = re.compile(r"^- ([A-D]): ", re.MULTILINE)


@dataclass(frozen=True)
class ChoiceRow:
    """One question with four choices; ``answer`` is a letter."""

    identifier: str
    context: str
    question: str
    choices: tuple[str, str, str, str]
    answer: str
    difficulty: str
    length: str
    domain: str
    sub_domain: str


def parse(position: int, row: Mapping[str, Any]) -> ChoiceRow:
    """A row as LongBench v2 publishes it.

    Raises:
        KeyError: a field is missing.
        ValueError: a field of another kind, or an answer that is no letter from A to D.
    """
    texts = ("context", "question", *(f"choice_{letter}" for letter in LETTERS))
    for name in texts:
        text_field(row, name)
    for name, valid in (("answer", LETTERS), ("difficulty", DIFFICULTIES), ("length", LENGTHS)):
        if row[name] not in valid:
            found = shown(row[name])
            raise ValueError(f"field {name!r} is {found}, expected one of {', '.join(valid)}")
    first, second, third, fourth = (row[f"choice_{letter}"] for letter in LETTERS)
    return ChoiceRow(
        identifier=str(row.get("_id", position)),
        context=row["context"],
        question=row["question"],
        choices=(first, second, third, fourth),
        answer=row["answer"],
        difficulty=row["difficulty"],
        length=row["length"],
        domain=str(row.get("domain", "")),
        sub_domain=str(row.get("sub_domain", "")),
    )


def answer_text(letter: str) -> str:
    """The sentence that the published rule looks for."""
    return f"The correct answer is ({letter})"


def is_pair_folder(path: Path) -> bool:
    """Whether a folder holds a context file beside a Markdown file of the same name."""
    return path.is_dir() and any(
        file.with_name(file.name.removesuffix(_CONTEXT_ENDING) + ".md").is_file()
        for file in path.glob("*" + _CONTEXT_ENDING)
    )


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """Rows of all Markdown files of a folder, by name, with the published field names.

    Raises:
        UserError: no pair; a file without its partner, heading or field.
    """
    rows = []
    for file in sorted(folder.glob("*.md")):
        partner = file.with_name(file.stem + _CONTEXT_ENDING)
        try:
            text = read_text(file)
            if len(_HEADING.findall(text)) == 0:
                continue  # a read-me beside the samples
            # as it is: reading would turn carriage returns into newlines
            context = read_text(partner, newline="")
        except UserError as error:
            raise UserError(f"{error} (a part of {file.name})") from error
        with naming(file, "headings"):
            rows.append({**_markdown(text), "context": context})
    if not rows:
        raise UserError(
            f"{folder} holds no pair of sample_N.md and sample_N{_CONTEXT_ENDING} of LongBench v2"
        )
    return rows


def _markdown(text: str) -> dict[str, Any]:
    pieces = _HEADING.split(text)
    parts = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    facts = {}
    for line in parts["Metadata"].splitlines():
        name, colon, value = line.removeprefix("- ").partition(": ")
        if colon:
            facts[name] = value.strip()
    listed = _CHOICE.split(parts["Choices"])
    choices = dict(zip(listed[1::2], (piece.strip() for piece in listed[2::2]), strict=True))
    return {
        "_id": facts["ID"],
        "domain": facts["Domain"],
        "sub_domain": facts["Subdomain"],
        "difficulty": facts["Difficulty"],
        "length": facts["Length"],
        "question": parts["Question"],
        **{f"choice_{letter}": choices[letter] for letter in LETTERS},
        "answer": parts["Answer"],
    }
