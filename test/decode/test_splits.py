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
from models_page import PAGE
from small_decoders import small_decoder
from tiny_models import VOCABULARY, KeepEverything, RandomKeep
from torch import Tensor

from catekv.cache.continuation import hides_padding
from catekv.decode import generation
from catekv.errors import UserError
from catekv.methods.base import Method
from catekv.model import CateKVModel

#: one of each kind of layers; all of them run in the slow suite
QUICK = ("llama", "mistral-window", "gemma3", "llama4_text", "jamba", "lfm2", "qwen3_next")
SPLITS, STEPS = 3, 3
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


def check(
    name: str,
    count: int,
    chosen_from: Callable[[], dict[int, Tensor]],
    made: Callable[[str], Any] = any_model,
    recurrent: bool = False,
) -> None:
    stock = made(name)
    stock.set_attn_implementation("sdpa" if stock._supports_sdpa else "eager")
    model = CateKVModel(made(name))
    # recurrences over chunks of a text and over single tokens round differently
    allowed = 5e-5 if recurrent else 1e-5
    for split in splits(name, count):
        if not hides_padding(model.model):
            if len({len(ids) for ids in split.contexts}) > 1:
                with pytest.raises(UserError, match="counts padding as tokens"):
                    run(model, split, KeepEverything())
            # its questions may still differ in length
            least = min(map(len, split.contexts))
            contexts = [ids[:least] for ids in split.contexts]
            split = Split(contexts, split.questions, split.chunk)
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
    check(name, SPLITS, chosen_from, recurrent=name in RECURRENT)


@pytest.mark.parametrize("name", ["bart", "deepseek_v4"])
def test_models_that_count_padding_get_rows_of_one_length(
    name: str, chosen_from: Callable[[], dict[int, Tensor]]
) -> None:
    """One numbers columns whatever it is told, the other makes blocks of them."""
    check(name, SPLITS, chosen_from, small_decoder)


def supported() -> list[str]:
    """Every kind of docs/models.md that is not refused."""
    text = PAGE.read_text(encoding="utf-8").split("## Refused")[0]
    return [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.slow
@pytest.mark.parametrize("name", supported())
def test_splits_of_every_kind_of_the_page(
    name: str, chosen_from: Callable[[], dict[int, Tensor]]
) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"| `{name}` |"))
    check(name, SPLITS, chosen_from, small_decoder, "linear attention" in line)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_many_splits_of_every_architecture(
    name: str, chosen_from: Callable[[], dict[int, Tensor]]
) -> None:
    check(name, 4 * SPLITS, chosen_from, recurrent=name in RECURRENT)
