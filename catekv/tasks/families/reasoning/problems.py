"""MATH-500 and AIME: rows of problems, and how their answers are scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.metrics import boxed
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.sources import Hub, load_rows

PREFIX = "reasoning/"
#: task: kind of answer, data set, split, tokens allowed
SOURCES = {
    "math500": ("math", Hub("HuggingFaceH4/MATH-500", None, "test"), 8192),
    "aime24": ("aime", Hub("HuggingFaceH4/aime_2024", None, "train"), 16384),
    "aime25": ("aime", Hub("MathArena/aime_2025", None, "train"), 16384),
}
_ASK = "\nThink step by step, and put the final answer in \\boxed{}.\n"


def row_parts(name: str, position: int, row: Mapping[str, Any]) -> Parts:
    """A row of any of the published copies: the problem as ``problem`` or ``question``."""
    problem, answer = row.get("problem", row.get("question")), row.get("answer")
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError("the row has no problem or question")
    if isinstance(answer, bool) or not isinstance(answer, str | int) or not str(answer).strip():
        raise ValueError("the row has no answer to score against")
    kind, _, allowed = SOURCES[name]
    text = str(answer).strip()
    if kind == "aime" and boxed.integer_0_999(text) is None:
        raise ValueError(f"answer {text!r} is no whole number from 0 to 999")
    return Parts(
        context=problem,
        question=_ASK,
        answer_prefix="",
        outputs=(text,),
        max_new_tokens=allowed,
        wording="english-1",
        scoring={"kind": kind},
        metadata={
            "row": position,
            **{key: row[key] for key in ("subject", "level", "unique_id", "id") if key in row},
        },
    )


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples of a file; a problem is never cut."""
    name = request.task.name.removeprefix(PREFIX)
    rows = load_rows(
        request.task.name,
        request.options,
        files=(f"{name}.jsonl", f"{name}.parquet", "test.jsonl"),
        hub=SOURCES[name][1],
        built_in=None,
        how_to_get=f"download the rows of the data set {SOURCES[name][1].repository}",
    )
    every = list(rows.parsed(lambda position, row: row_parts(name, position, row)))
    last = request.first + request.count
    for index, parts in enumerate(every[request.first : last], request.first):
        yield limited(request, index, parts, rows.data, None)


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official``: the last box holds the right answer; ``strict``: in the very words;
    ``answered``: there is a box; ``unreadable``: what compares answers reads nothing in it;
    ``by_text``: there only where math-verify is missing and terms were compared as texts."""
    if not sample.outputs:
        raise UserError(
            f"{sample.task}, sample {sample.index}: there is no answer to score against"
        )
    gold, answer = sample.outputs[0], boxed.boxed(prediction)
    kind = sample.scoring["kind"]
    right = boxed.right(kind, gold, answer)
    by_text = kind == "math" and boxed.comparison() == boxed.BY_TEXT
    return {
        "official": float(right),
        "strict": float(right and answer == gold),
        "answered": float(answer is not None),
        "unreadable": float(answer is not None and not boxed.readable(kind, answer)),
        **({"by_text": 1.0} if by_text else {}),
    }
