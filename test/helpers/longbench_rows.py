"""LongBench rows and files in the published layouts, written for the tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from catekv import tasks
from catekv.tasks.families.longbench.table import facts

LEFT_OUT = object()


def row(task: str, **fields: Any) -> dict[str, Any]:
    """A row of v1; fields given as :data:`LEFT_OUT` are not in it."""
    classes = ["fruit", "metal"] if facts(task).metric == "classification" else None
    answers = {"retrieval": ["Paragraph 2"], "retrieval_zh": ["段落2"], "count": ["3"]}
    whole = {
        "input": "what is the colour of the ship?",
        "context": "the harbour is quiet. " * 200 + "the ship is red.",
        "answers": answers.get(facts(task).metric, ["metal" if classes else "red"]),
        "length": 804,
        "dataset": facts(task).name,
        "language": facts(task).language,
        "all_classes": classes,
        "_id": "a1",
    }
    return {name: value for name, value in {**whole, **fields}.items() if value is not LEFT_OUT}


def choice_row(**fields: Any) -> dict[str, Any]:
    """A row of v2."""
    return {
        "_id": "b1",
        "domain": "Single-Document QA",
        "sub_domain": "Literary",
        "difficulty": "easy",
        "length": "short",
        "question": "what is the colour of the ship?",
        "choice_A": "red",
        "choice_B": "green",
        "choice_C": "blue",
        "choice_D": "black",
        "answer": "A",
        "context": "the harbour is quiet. " * 200 + "the ship is red.",
        **fields,
    }


def write_rows(file: Path, *rows: dict[str, Any]) -> Path:
    """A JSONL file, or one JSON list for other names."""
    lines = [json.dumps(one, ensure_ascii=False) for one in rows]
    text = "\n".join(lines) if file.suffix == ".jsonl" else f"[{','.join(lines)}]"
    file.write_text(text + "\n", encoding="utf-8")
    return file


@cache
def embedded_tokenizer() -> Any:
    """The embedded model's tokenizer."""
    from transformers import AutoTokenizer

    from catekv.models import embedded

    return AutoTokenizer.from_pretrained(embedded.path())


def small_samples(task: str, length: int = 512, count: int = 2, **options: Any) -> list[Any]:
    """Generated samples for the embedded model."""
    tokenizer = embedded_tokenizer()
    return tasks.build(task, tokenizer, length, count, source="built-in", **options)
