"""Scores of SCBench's turns, by task.

The published scorer loops over the characters of single labels, cuts signs and commas off numbers,
reads any word that starts with A to D as a choice and gives an empty label a full score; here a
label is compared whole (arXiv 2412.10319 names the metrics).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from catekv.errors import UserError
from catekv.tasks.metrics.chinese import character_f1_zh
from catekv.tasks.metrics.rouge import rouge_google
from catekv.tasks.metrics.substring import strict_match_all
from catekv.tasks.metrics.words import as_list

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_DIGITS = re.compile(r"\d+")
#: a letter that no letter or digit touches
_ALONE = re.compile(r"(?<![^\W_])[A-D](?![^\W_])")
_LEADING = re.compile(r"\(?([A-D])(?:[).:,]|\Z)")
#: "The answer is a train" names no letter: only the cue may be in any case
_CUE = re.compile(r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\(?([A-D])(?![^\W_])")


def _texts(label: Any) -> list[str]:
    labels = label if isinstance(label, list | tuple) else [label]
    return [str(text) for text in labels if str(text)]


def _contained(prediction: str, label: Any) -> float:
    texts = _texts(label)
    return float(bool(texts) and texts[0] in prediction)


def _contained_any_case(prediction: str, label: Any) -> float:
    text = prediction.upper()
    return float(any(wanted.upper() in text for wanted in _texts(label)))


def _share_contained(prediction: str, label: Any) -> float:
    text, wanted = prediction.lower(), _texts(label)
    return sum(name.lower() in text for name in wanted) / len(wanted) if wanted else 0.0


def _first_number(prediction: str, label: Any) -> float:
    number = _NUMBER.search(prediction)
    if number is None:
        return 0.0
    try:
        return float(float(number.group().replace(",", "")) == float(_texts(label)[0]))
    except (IndexError, ValueError, OverflowError):
        return 0.0


def _first_digits(prediction: str, label: Any) -> float:
    digits, wanted = _DIGITS.search(prediction), _texts(label)
    return float(digits is not None and bool(wanted) and digits.group() == wanted[0])


def _summary(prediction: str, label: Any) -> float:
    wanted = as_list(_texts(label))
    return rouge_google(prediction, wanted, ("rougeLsum",))["rougeLsum"].f if wanted else 0.0


def chosen_letter(prediction: str, options: Sequence[str]) -> str | None:
    """The option that an answer chooses, as a letter: one that opens the answer, else the one after
    the last cue ("answer is"), else the option whose text the answer is, else the first letter that
    stands alone. None: no choice."""
    text = prediction.strip()
    leading = _LEADING.match(text)
    if leading:
        return leading.group(1)
    cues = _CUE.findall(text)
    if cues:
        return str(cues[-1])
    if text in options:
        return "ABCD"[list(options).index(text)]
    alone = _ALONE.search(text)
    return alone.group() if alone else None


def _choice(prediction: str, label: Any, options: Sequence[str]) -> float:
    text, letter = label
    return float(
        chosen_letter(prediction, options) == letter or (bool(text) and prediction.strip() == text)
    )


_RULES: dict[str, Callable[[str, Any], float]] = {
    "scbench_kv": _contained,
    "scbench_kv_hard": _contained,
    "scbench_kv_compressible": _contained,
    "scbench_hashhop": _contained,
    "scbench_prefix_suffix": _contained,
    "scbench_vt": _share_contained,
    "scbench_qa_eng": _contained_any_case,
    "scbench_many_shot": _contained_any_case,
    "scbench_qa_chn": lambda text, label: character_f1_zh(text, _texts(label)),
    "scbench_mf": _first_number,
    "scbench_passkey": _first_digits,
    "scbench_summary": _summary,
    "scbench_needle": _first_digits,
}
TASKS = (*_RULES, "scbench_choice_eng")
_STRICT = ("scbench_kv", "scbench_kv_hard", "scbench_kv_compressible", "scbench_hashhop")
_STRICT_WORDS = (*_STRICT, "scbench_prefix_suffix", "scbench_vt", "scbench_many_shot")


def score(task: str, prediction: str, label: Any, options: Sequence[str] = ()) -> float:
    """The score of one answer in [0, 1].

    Args:
        task: one of :data:`TASKS`; ``scbench_needle`` is a needle's turn of the mixed summaries.
            RepoQA has its own module.
        label: as in the files: a text, a number, a list of names, or [text, letter] of a choice.
        options: texts of the options A to D of a choice.

    Raises:
        UserError: unknown task.
    """
    if task == "scbench_choice_eng":
        return _choice(prediction, label, options)
    if task not in _RULES:
        raise UserError(f"unknown SCBench task {task!r}; available: {', '.join(TASKS)}")
    return _RULES[task](prediction, label)


def strict(task: str, prediction: str, label: Any, options: Sequence[str] = ()) -> float:
    """:func:`score`, but texts that are looked for must stand as whole words; naming more of them
    than were asked for lowers the share."""
    if task not in _STRICT_WORDS:
        return score(task, prediction, label, options)
    wanted = _texts(label)
    return strict_match_all(prediction, wanted) if wanted else 0.0
