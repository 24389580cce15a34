"""The tasks of SCBench: allowances of their answers and what a turn is scored by."""

from __future__ import annotations

from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.sample import Sample
from catekv.tasks.metrics import repoqa, scbench

PREFIX = "scbench/"
#: new tokens of a turn; the mixed tasks have two kinds of turns
NEW_TOKENS: dict[str, tuple[int, ...]] = {
    "kv": (150,),
    "prefix_suffix": (150,),
    "vt": (30,),
    "repoqa": (1024,),
    "qa_eng": (40,),
    "qa_chn": (40,),
    "choice_eng": (40,),
    "many_shot": (10,),
    "mf": (5,),
    "summary": (200,),
    "passkey": (15,),
    "kv_hard": (150,),
    "hashhop": (150,),
    "kv_compressible": (150,),
    "summary_with_needles": (800, 15),
    "repoqa_and_kv": (1024, 80),
}
#: what turns of mixed tasks call themselves in the files, and whose rule scores them
_PARTS = {
    "scbench_summary": ("summary", 0),
    "scbench_passkey": ("needle", 1),
    "scbench_needle": ("needle", 1),
    "scbench_repoqa": ("repoqa", 0),
    "scbench_kv": ("kv", 1),
}


def answer_room(name: str, turns: int) -> int:
    """Tokens of the answers of all turns: of mixed tasks the sum of both times half the turns."""
    tokens = NEW_TOKENS[name]
    return sum(tokens) * turns // 2 if len(tokens) > 1 else tokens[0] * turns


def part_of(name: str, turn_task: Any) -> tuple[str, int]:
    """The rule that scores a turn, and its tokens."""
    tokens = NEW_TOKENS[name]
    if len(tokens) == 1:
        return name, tokens[0]
    key = str(turn_task or "")
    key = key if key.startswith("scbench_") else f"scbench_{key}"
    if key not in _PARTS:
        raise ValueError(f"turn of {name} with task {turn_task!r}; expected {', '.join(_PARTS)}")
    rule, place = _PARTS[key]
    return rule, tokens[place]


def metric_name(name: str) -> str:
    """Short name of what the official score of a task is."""
    if name in ("kv", "prefix_suffix", "kv_hard", "kv_compressible", "hashhop", "qa_eng"):
        return "contained"
    return {
        "vt": "all", "qa_chn": "f1", "choice_eng": "choice", "summary": "rougeLsum",
        "repoqa": "bleu", "many_shot": "contained",
    }.get(name, "number" if name in ("mf", "passkey") else "mixed")  # fmt: skip


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official`` by the rule of the turn's task; ``strict``: texts must be whole words.

    Raises:
        UserError: a turn without a label.
    """
    rule, label = sample.scoring["rule"], sample.scoring.get("label")
    if label is None:
        raise UserError(f"{sample.task}, sample {sample.index}: the turn has no answer to score")
    if rule == "repoqa":
        match = repoqa.best_match(prediction, sample.scoring["functions"], label)
        passed = float(match.passed)
        return {"official": passed, "strict": passed, "bleu": match.bleu}
    name, options = f"scbench_{rule}", sample.scoring.get("options", ())
    text = prediction
    joined = sample.scoring.get("spelling") == "joined"
    if joined:  # numerals of the closed vocabulary are one number
        text, label = "".join(prediction.split()), "".join(str(label).split())
    official = scbench.score(name, text, label, options)
    strict = official if joined else scbench.strict(name, text, label, options)
    return {"official": official, "strict": min(official, strict)}
