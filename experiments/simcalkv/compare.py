"""The comparison's command: answers, bytes and times with and without compression."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.evaluation.run import request as evaluated
from catekv.evaluation.run.session import open_model
from experiments.simcalkv.arguments import (
    add_data_arguments,
    add_method_arguments,
    add_model_arguments,
    choices_of,
    examples_of,
    reading_of,
)
from experiments.simcalkv.benchmarks import Example, Reading, find, fingerprint
from experiments.simcalkv.bleu import require_sacrebleu
from experiments.simcalkv.journal import unfinished
from experiments.simcalkv.kv_methods import Choice
from experiments.simcalkv.pairs import compare
from experiments.simcalkv.results import (
    Pair,
    Results,
    family_of,
    refuse_other_model,
    summary,
    write,
)
from experiments.simcalkv.split import Split

if TYPE_CHECKING:
    from catekv.model import CateKVModel


@dataclass(frozen=True)
class Request:
    """What is to be compared; the flags of the command.

    Attributes:
        choices: methods at ratios; the uncompressed side is measured once for all of them.
        reading: where rows come from and how long prompts are; ``window`` is filled in.
    """

    model: str
    dataset: str
    split: Split
    choices: tuple[Choice, ...]
    output: Path
    reading: Reading = field(default_factory=Reading)
    dtype: str = "auto"
    device: str = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the command."""
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_method_arguments(parser, [0.4])
    parser.add_argument("--output_dir", default="results", help="folder (default: %(default)s)")


def request_of(parsed: argparse.Namespace) -> Request:
    """The request that the flags describe.

    Raises:
        UserError: whatever can be seen to be wrong before a model is loaded.
    """
    if find(parsed.dataset).metric == "bleu":
        require_sacrebleu()
    return Request(
        parsed.model_name,
        parsed.dataset,
        Split.parse(parsed.split),
        choices_of(parsed),
        Path(parsed.output_dir),
        reading_of(parsed),
        parsed.dtype,
        parsed.device,
    )


def run(request: Request, progress: Callable[[str], None] = lambda text: None) -> list[Results]:
    """Compare, write the files, and return what was measured, method by method.

    Raises:
        UserError: wrong input; the message says what and what to do.
    """
    model = open_model(
        evaluated.Request(request.model, request.dtype, request.device), for_text=True
    )
    examples = examples_of(request.dataset, request.split, model, request.reading)

    def results(choice: Choice, pairs: list[Pair], failed: list[tuple[str, str]]) -> Results:
        return Results(
            request.dataset,
            choice.label,
            choice.ratio,
            choice.method().to_dict(),
            request.model,
            family_of(model.config.model_type),
            pairs,
            failed,
            settings_of(request, model, examples),
        )

    for choice in request.choices:
        refuse_other_model(request.output / results(choice, [], []).json_name, request.model)
    recipe = recipe_of(request, model, examples)
    with unfinished(request.output, request.dataset, recipe) as journal:
        measured = compare(model, examples, request.choices, journal, progress)
        found = [
            results(choice, *pairs) for choice, pairs in zip(request.choices, measured, strict=True)
        ]
        for one in found:
            write(request.output, one)
        journal.remove()
    return found


def recipe_of(request: Request, model: CateKVModel, examples: Sequence[Example]) -> dict[str, Any]:
    """Everything that decides the numbers of a run."""
    return {
        "model": request.model,
        "shape": str(model.shape),
        "dataset": request.dataset,
        "choices": [
            (choice.label, choice.ratio, choice.method().to_dict()) for choice in request.choices
        ],
        **settings_of(request, model, examples),
    }


def settings_of(
    request: Request, model: CateKVModel, examples: Sequence[Example]
) -> dict[str, Any]:
    """What else decides the numbers of a run."""
    import torch
    import transformers

    return {
        "split": str(request.split),
        "data": examples[0].data,
        "prompts": fingerprint(examples),
        "max_new_tokens": max(example.max_new_tokens for example in examples),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": request.reading.seed,
    }


def table(results: Sequence[Results]) -> str:
    """What was measured, a line per method."""
    lines = []
    for one in results:
        if not one.pairs:
            continue
        values = summary(one)
        scores = ", ".join(
            f"{name} {100 * before:.2f} -> {100 * after:.2f}"
            for name, before, after in _scores(values["metrics_before"], values["metrics_after"])
        )
        means = values["means"]
        lines.append(
            f"{one.label} {one.ratio:g}: {scores}; "
            f"{means['memory_before_MB']:.2f} -> {means['memory_after_MB']:.2f} MB; "
            f"{values['time_before']:.3f} -> {values['time_after']:.3f} s; kept "
            f"{values['kept_share']:.3f}; {values['samples']} samples"
        )
    return "\n".join(lines)


def _scores(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []
    for name, value in before.items():
        if isinstance(value, dict):
            found += _scores(value, after[name])
        else:
            found.append((name, value, after[name]))
    return found


def command(parsed: argparse.Namespace) -> int:
    """Run the command; returns the exit code (1: some samples failed)."""
    results = run(request_of(parsed), lambda text: print(f"\r{text} ", end="", file=sys.stderr))
    print(file=sys.stderr)
    text = table(results)
    if text:
        print(text)
    for one in results:
        print(f"{Path(parsed.output_dir) / one.csv_name}  {one.json_name}")
    failed = [(one, name, error) for one in results for name, error in one.failed]
    if failed:
        one, name, error = failed[0]
        print(
            f"error: {len(failed)} measurements failed, the first ({one.label}, {name}) with "
            f"{error}; see the summaries",
            file=sys.stderr,
        )
    return 1 if failed else 0
