"""Official files of SCBench, and the shortened copy of the KVzip authors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.scbench.options import MULTI_REQUEST
from catekv.tasks.families.scbench.session import Turn, turn_parts
from catekv.tasks.families.scbench.table import NEW_TOKENS, PREFIX, metric_name, part_of
from catekv.tasks.rows.named_files import NamedFiles
from catekv.tasks.rows.sources import file_rows

#: name of the prompt set in which rows are asked
WORDING = "scbench-1"
FILES = NamedFiles("SCBench", PREFIX, tuple(NEW_TOKENS), frozenset({"context"}), folders=True)
ASK = {
    "kv": "\nGive the value that the JSON data above hold for this key.\nKey: {}\nValue:",
    "repoqa": "\nWrite out the one function in the code above that is described here, unchanged "
    "and complete.\nDescription: {}\nFunction:\n",
    "qa_eng": "\nAnswer the question from the text above, in as few words as possible.\n"
    "Question: {}\nAnswer:",
    "qa_chn": "\n请根据上文用尽可能少的字回答问题。\n问题：{}\n回答：",  # noqa: RUF001
    "choice_eng": "\nChoose the right answer from the text above, and write its letter alone.\n"
    "Question: {}\nAnswer:",
    "mf": "\n{}\nThe number is:",
    "vt": "\n{}\nThe variables are:",
    "needle": "\n{}\nThe number is:",
}
_BEFORE = {"mf": "A list of whole numbers follows.\n"}


def _context(name: str, value: Any) -> str:
    if name == "mf" and isinstance(value, list | tuple):
        if not value or any(type(number) is not int for number in value):
            raise ValueError("context is no list of whole numbers")
        return _BEFORE[name] + json.dumps(list(value)) + "\n"
    if not isinstance(value, str) or not value.strip():
        raise ValueError("context is no text")
    return value


def _turns(name: str, row: Mapping[str, Any]) -> list[Turn]:
    given = row.get("multi_turns")
    if given is None and isinstance(row.get("question"), list):
        # the shortened copy: lists of questions and answers
        answers = row.get("answers", row.get("answer"))
        if not isinstance(answers, list) or len(answers) != len(row["question"]):
            raise ValueError("question and answers have not the same length")
        pairs = zip(row["question"], answers, strict=True)
        given = [{"input": question, "answer": answer} for question, answer in pairs]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError("the row has no list multi_turns")
    return [_turn(name, number, turn, row) for number, turn in enumerate(given)]


def _can_be_compared(answer: Any) -> bool:
    """A text, a finite number, or a list of them that is not empty."""
    if isinstance(answer, list | tuple):
        return bool(answer) and all(map(_can_be_compared, answer))
    if isinstance(answer, str):
        return bool(answer.strip())
    return isinstance(answer, int | float) and math.isfinite(answer)


def _turn(name: str, number: int, turn: Any, row: Mapping[str, Any]) -> Turn:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("input"), str):
        raise ValueError(f"turn {number + 1} has no input")
    answer = turn.get("answer")
    if not _can_be_compared(answer):
        raise ValueError(f"turn {number + 1} has no answer to score against")
    rule, tokens = part_of(name, turn.get("task"))
    scoring: dict[str, Any] = {"rule": rule, "label": answer}
    text = turn["input"]
    shown = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    if isinstance(answer, list | tuple):
        shown = ", ".join(map(str, answer))
    if rule == "choice_eng":
        options = [str(option) for option in turn.get("options") or ()]
        if len(options) != 4 or shown not in options:
            raise ValueError(f"turn {number + 1} has no four options with the answer among them")
        text, shown, more = choice(text, shown, options)
        scoring.update(more)
    if rule == "repoqa":
        functions = row.get("repo")
        functions = json.loads(functions) if isinstance(functions, str) else functions
        target = turn.get("name")
        if not isinstance(functions, Mapping) or target not in functions:
            raise ValueError(f"turn {number + 1}: repo holds no function {target!r}")
        scoring.update(label=target, functions=dict(functions))
    question = ASK.get(rule, "\n{}\n").format(text)
    return Turn(question, shown, tokens, scoring, outputs=(str(shown),))


def choice(text: str, right: str, options: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """Question with its four options, the right letter, and what scores the answer."""
    letter = "ABCD"[options.index(right)]
    lines = (f"{each}. {option}" for each, option in zip("ABCD", options, strict=True))
    scoring = {"label": [right, letter], "options": list(options)}
    return "\n".join([text, *lines]), letter, scoring


def session(name: str, row: Mapping[str, Any]) -> tuple[str, list[Turn]]:
    """Context and turns of a row.

    Raises:
        ValueError: a field is missing or of another kind.
    """
    return _context(name, row["context"]), _turns(name, row)


def recognise(row: Mapping[str, Any], path: Path) -> str | None:
    if "multi_turns" not in row and not isinstance(row.get("question"), list):
        return None
    return FILES.recognise(row, path)


def read(path: Path, name: str | None = None) -> list[Sample]:
    """Samples of a file, one per turn, every question asked of the context alone."""
    task = FILES.task(path, name)
    rows = file_rows(path)
    samples: list[Sample] = []
    for number, (context, turns) in enumerate(rows.parsed(lambda _, row: session(task, row))):
        for place in range(len(turns)):
            parts = turn_parts(context, turns, place, MULTI_REQUEST, WORDING, {"session": number})
            samples.append(unfitted(PREFIX + task, metric_name(task), len(samples), parts))
    if not samples:
        raise UserError(f"{path} holds no session")
    return samples
