"""Any split of a text into context, question, chunks and batch rows gives what a row gives alone.

The truth is the stock model: one forward without a cache over the tokens of one row.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from architectures import ALL, RECURRENT, any_model
from tiny_models import VOCABULARY, KeepEverything, RandomKeep
from torch import Tensor

from catekv.decode import generation
from catekv.methods.base import Method
from catekv.model import CateKVModel

#: one of each kind of layers; all of them run in the slow suite
QUICK = ("llama", "mistral-window", "gemma3", "llama4_text", "jamba", "lfm2", "qwen3_next")
SPLITS, STEPS = 4, 3
#: Its rotary factors change at 32 tokens: a row that crosses them keeps keys turned by both tables,
#: which one forward over all its tokens does not have (rows beside it: models/test_row_rotary.py).
LEAST = {"phi3-long": 33}

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


@dataclass(frozen=True)
class Split:
    """What one run feeds: contexts and questions of a batch, and tokens per prefill step."""

    contexts: list[list[int]]
    questions: list[list[int]]
    chunk: int | None


def splits(name: str, count: int) -> list[Split]:
    """Random splits of an architecture, the same in every run."""
    draw = random.Random(zlib.crc32(name.encode()))

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]

    found = []
    for number in range(count):
        batch = 1 if number == 0 else draw.randint(2, 3)
        found.append(
            Split(
                [ids(LEAST.get(name, 5), 80) for _ in range(batch)],
                [ids(0, 7) for _ in range(batch)],
                draw.choice([None, 7, 16, 40]),
            )
        )
    return found


@pytest.fixture
def chosen_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[int, Tensor]]:
    """Gives, after an answer, the logits [steps, vocabulary] that each row's tokens were taken
    from."""
    seen: dict[int, list[Tensor]] = {}
    answer, choose = generation.answer, generation.Greedy.__call__
    rows: list[Sequence[int]] = [()]

    def watched(*arguments: Any) -> Any:
        rows[0] = arguments[-1]
        return (yield from answer(*arguments))

    def noted(self: Any, logits: Tensor, index: int) -> Tensor:
        for row, own in zip(rows[0], logits.clone(), strict=True):
            seen.setdefault(row, []).append(own)
        return choose(self, logits, index)

    monkeypatch.setattr(generation, "answer", watched)
    monkeypatch.setattr(generation.Greedy, "__call__", noted)

    def take() -> dict[int, Tensor]:
        taken = {row: torch.stack(logits) for row, logits in seen.items()}
        seen.clear()
        return taken

    return take


def run(model: CateKVModel, split: Split, method: Method) -> list[list[int]]:
    context = model.prefill(split.contexts, split.chunk, method)
    return model.generate_ids(split.questions, context, STEPS, []).rows


@torch.no_grad()
def stock_logits(model: Any, ids: list[int], count: int) -> Tensor:
    """Logits [count, vocabulary] of the last tokens, from one forward without a cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, -count:]


def assert_close(found: Tensor, right: Tensor, what: str, allowed: float = 1e-5) -> None:
    assert float(right.std()) > 0.05, "a flat model would make any comparison pass"
    difference = float((found - right).abs().max()) / max(1.0, float(right.abs().max()))
    assert difference < allowed, f"{what}: off by {difference:.1e}"


def check(name: str, count: int, chosen_from: Callable[[], dict[int, Tensor]]) -> None:
    stock = any_model(name)
    stock.set_attn_implementation("sdpa" if stock._supports_sdpa else "eager")
    model = CateKVModel(any_model(name))
    # recurrences over chunks of a text and over single tokens round differently
    allowed = 5e-5 if name in RECURRENT else 1e-5
    for split in splits(name, count):
        rows = run(model, split, KeepEverything())
        found = chosen_from()
        assert len(found) == len(rows) == len(split.contexts)
        for row, answer in enumerate(rows):
            ids = [*split.contexts[row], *split.questions[row], *answer[:-1]]
            right = stock_logits(stock, ids, STEPS)
            what = f"row {row} of {split} against the stock model"
            assert_close(found[row], right, what, allowed)
        together = run(model, split, RandomKeep())
        found = chosen_from()
        for row, answer in enumerate(together):
            own = Split([split.contexts[row]], [split.questions[row]], split.chunk)
            (alone,) = run(model, own, RandomKeep())
            # rounding may choose between two equally likely tokens; what follows is another answer
            equal = [one == other for one, other in zip(alone, answer, strict=True)]
            steps = [*equal, False].index(False) + 1
            what = f"row {row} of {split} against itself alone"
            assert_close(found[row][:steps], chosen_from()[0][:steps], what, allowed)


@pytest.mark.parametrize("name", QUICK)
def test_splits(name: str, chosen_from: Callable[[], dict[int, Tensor]]) -> None:
    check(name, SPLITS, chosen_from)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_many_splits_of_every_architecture(
    name: str, chosen_from: Callable[[], dict[int, Tensor]]
) -> None:
    check(name, 3 * SPLITS, chosen_from)
