"""Accuracy of the embedded model with plain full attention, and its model card.

``python -m experiments.embedded.evaluate`` builds RULER samples, lets transformers' own greedy
generation answer them (no code of this package in between), and writes ``evaluation.json`` and
``MODEL_CARD.md`` beside the model. Samples that are in ``evaluation.json`` are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from catekv import tasks
from catekv.commands.cli import Parser, run_safely
from catekv.commands.numbers import item_count, thread_count, token_count
from catekv.errors import UserError
from catekv.files import read_fields, write_atomically
from catekv.loading import load_checkpoint, make_method
from catekv.models import embedded
from catekv.tasks.core.prompt import encode
from catekv.tasks.wording.small import SmallWording
from experiments.embedded.card import write_card

SEED = 42


def answer(model: Any, tokenizer: Any, sample: tasks.Sample) -> str:
    """Greedy answer to the full prompt, stopped at ``</s>``."""
    prompt = torch.tensor([encode(sample, tokenizer).ids])
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=sample.max_new_tokens,
            do_sample=False,
        )
    text: str = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    return text


def evaluate(folder: Path, lengths: Sequence[int], count: int, names: Sequence[str]) -> None:
    """Score ``count`` samples per task and length; results grow in ``evaluation.json``."""
    model, tokenizer = load_checkpoint(
        folder, make_method("full"), torch.float32, "cpu", "auto", tensor_parallel=False
    )
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer that can be read; restore its files")
    model.eval()
    file = folder / "evaluation.json"
    found: dict[str, dict[str, list[float]]] = {}
    if file.exists():
        found = read_fields(file, "remove it", scores=dict)["scores"]
    for length in lengths:
        for name in names:
            cell = found.setdefault(f"{name} {length}", {"official": [], "strict": []})
            if not isinstance(cell, dict) or not all(isinstance(v, list) for v in cell.values()):
                raise UserError(f"{file} holds a damaged cell {name} {length}; remove it")
            first = len(cell["strict"])
            if first >= count:
                continue
            samples = tasks.build(
                f"ruler/{name}", tokenizer, length, count - first, seed=SEED, first=first
            )
            for sample in samples:
                scores = tasks.score(answer(model, tokenizer, sample), sample)
                for kind, values in cell.items():
                    values.append(round(scores[kind], 4))
            strict = cell["strict"]
            print(f"{name} {length}: {100 * sum(strict) / len(strict):.1f}", flush=True)
            content = {"seed": SEED, "stream": "test", "scores": found}
            write_atomically(file, json.dumps(content) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m experiments.embedded.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="default: the shipped one")
    parser.add_argument("--lengths", type=token_count, nargs="+", default=[1024, 4096])
    parser.add_argument("--samples", type=item_count, default=100)
    parser.add_argument("--tasks", nargs="+", default=sorted(SmallWording.tasks))
    parser.add_argument("--threads", type=thread_count, default=1)
    parser.add_argument("--card-only", action="store_true", help="write the card from the files")
    options = parser.parse_args(arguments)
    return run_safely(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    folder = options.model or embedded.path()
    if not options.card_only:
        evaluate(folder, options.lengths, options.samples, options.tasks)
    write_card(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
