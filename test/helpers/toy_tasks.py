"""A small family of tasks whose samples a test writes down itself, in the embedded vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from catekv.tasks import metrics, registry
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task

#: known to the embedded model's tokenizer
WORDS = (
    "note",
    "the",
    "a",
    "of",
    "to",
    "in",
    "it",
    "and",
    "was",
    "he",
    "she",
    "they",
    "day",
    "time",
    "man",
    "house",
    "water",
    "word",
    "place",
    "year",
)


@dataclass(frozen=True)
class ToyOptions:
    source: str = "auto"


def text(tokens: int, seed: int = 0) -> str:
    """A context of about so many tokens."""
    return " ".join(WORDS[(7 * i + seed) % len(WORDS)] for i in range(tokens)) + " "


def toy_sample(index: int, tokens: int = 120, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "task": "toy/rows",
        "index": index,
        "context": text(tokens, index),
        "question": f"{WORDS[index % len(WORDS)]} and the",
        "answer_prefix": "",
        "outputs": (f"{index + 10}",),
        "max_new_tokens": 6,
        "length": tokens + 20,
        "target_length": 0,
        "metric": "all",
        "wording": "small-1",
    }
    return Sample(**{**values, **changes})


def score(prediction: str, sample: Sample) -> dict[str, float]:
    value = metrics.string_match_all(prediction, list(sample.outputs))
    return {"official": value, "strict": value}


def register(monkeypatch: pytest.MonkeyPatch, samples: list[Sample], **changes: Any) -> None:
    """Make ``toy/rows`` a task with these samples."""

    def generate(request: BuildRequest) -> Iterator[Sample]:
        yield from samples[request.first : request.first + request.count]

    values: dict[str, Any] = {
        "name": "toy/rows",
        "options": ToyOptions(),
        "max_new_tokens": 6,
        "metric": "all",
        "generate": generate,
        "score": score,
        "natural": True,
    }
    task = Task(**{**values, **changes})
    family = Family("toy", (task,), lambda *_: [], lambda *_: None)
    monkeypatch.setitem(registry._REGISTERED, "toy", family)
