"""The comparison's command: answers, bytes and times with and without compression."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.simcalkv.datasets import DATASETS, Example, Reading, find, fingerprint, load
from catekv.simcalkv.kv_methods import Choice, calibrations
from catekv.simcalkv.results import Pair, Results, family_of, refuse_foreign, summary, write
from catekv.simcalkv.split import Split
from catekv.tasks.sources import SOURCES

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.simcalkv.comparison import Side

DEFAULT_MODEL = "meta-llama/Llama-2-7b-hf"
#: the side without compression
UNCOMPRESSED = Choice("full", 0.0)


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


def add_model_arguments(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    """``--model_name``, ``--dtype`` and ``--device``."""
    parser.add_argument(
        "--model_name",
        default=default,
        help="folder or hub name of any causal language model (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def add_data_arguments(
    parser: argparse.ArgumentParser, dataset: str = "xsum", split: str = "test[:5]"
) -> None:
    """Which rows, where from, and how long prompts and answers are."""
    parser.add_argument("--dataset", default=dataset, help=f"one of {', '.join(DATASETS)}")
    parser.add_argument(
        "--split", default=split, help='rows, like "test[:100]" (default: %(default)s)'
    )
    parser.add_argument("--data_path", help="file with the rows, or a folder that holds it")
    parser.add_argument(
        "--source",
        default="auto",
        choices=SOURCES,
        help="where rows come from; built-in: small generated rows, only if asked for",
    )
    parser.add_argument("--max_input_tokens", type=int, help="of a prompt (default: as published)")
    parser.add_argument("--max_new_tokens", type=int, help="of an answer (default: as published)")
    parser.add_argument("--chat_template", default="auto", help="auto, base or a template's name")
    parser.add_argument("--seed", type=int, default=42, help="of generated rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the command."""
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_method_arguments(parser, [0.4])
    parser.add_argument("--output_dir", default="results", help="folder (default: %(default)s)")


def add_method_arguments(parser: argparse.ArgumentParser, ratios: list[float]) -> None:
    """Which methods, and how much they remove."""
    parser.add_argument(
        "--compress_ratio",
        type=float,
        nargs="+",
        default=ratios,
        help="share of the prompt that is removed, 0 to below 1 (default: "
        f"{' '.join(map(str, ratios))})",
    )
    parser.add_argument(
        "--kv_method",
        nargs="+",
        default=["SimCalKV"],
        help="SimCalKV, KeepKV, PyramidInfer, CaM, or any of `catekv methods`",
    )
    parser.add_argument(
        "--similarity_threshold", type=float, help="cosine that a merge must exceed (SimCalKV: 0)"
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        help="of SimCalKV: key_const (as published), logit, none; or all, one after the other",
    )
    parser.add_argument("--preset", default="published", choices=("published", "recommended"))


def reading_of(parsed: argparse.Namespace) -> Reading:
    """The flags of :func:`add_data_arguments`."""
    return Reading(
        parsed.max_input_tokens,
        parsed.max_new_tokens,
        None,
        parsed.data_path,
        parsed.source,
        parsed.seed,
        "base" if parsed.chat_template == "none" else parsed.chat_template,
    )


def request_of(parsed: argparse.Namespace) -> Request:
    """The request that the flags describe.

    Raises:
        UserError: whatever can be seen to be wrong before a model is loaded.
    """
    find(parsed.dataset)
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


def choices_of(parsed: argparse.Namespace) -> tuple[Choice, ...]:
    """Every method at every ratio with every calibration.

    Raises:
        UserError: unknown methods, options out of range.
    """
    several = len(parsed.kv_method) > 1
    choices = tuple(
        Choice(name, ratio, parsed.similarity_threshold, calibration, parsed.preset)
        for name in parsed.kv_method
        for ratio in parsed.compress_ratio
        # beside others only SimCalKV has calibrations; alone another method refuses them
        for calibration in calibrations(
            None if several and name.lower() != "simcalkv" else parsed.calibration
        )
    )
    for choice in choices:
        choice.method()  # refuses wrong options
    return choices


def open_model(name: str, dtype: str, device: str) -> CateKVModel:
    """The model; ``UserError`` if it cannot be loaded or has no tokenizer."""
    from transformers.utils import logging

    from catekv.model import CateKVModel

    logging.disable_progress_bar()
    model = CateKVModel.from_pretrained(name, method="full", dtype=dtype, device=device)
    if model.tokenizer is None:
        raise UserError(f"{name} has no tokenizer; add its files to the checkpoint")
    return model


def with_window(reading: Reading, model: CateKVModel) -> Reading:
    """The reading with the model's window filled in."""
    from catekv.transformers_compat import context_window

    return replace(reading, window=context_window(model.config))


def compare(
    model: CateKVModel,
    examples: Sequence[Example],
    choices: Sequence[Choice],
    progress: Callable[[str], None] = lambda text: None,
) -> list[tuple[list[Pair], list[tuple[str, str]]]]:
    """Every example without compression and with every method.

    The first example is measured once more beforehand and thrown away: first calls load kernels.

    Returns:
        Per choice the measured pairs, and identifier and error of what failed.
    """
    for choice in choices:
        choice.method().validate(model.shape)
    for choice in (UNCOMPRESSED, *choices):
        attempt(model, examples[0], choice)
    found: list[tuple[list[Pair], list[tuple[str, str]]]] = [([], []) for _ in choices]
    for number, example in enumerate(examples, 1):
        before = attempt(model, example, UNCOMPRESSED)
        for choice, (pairs, failed) in zip(choices, found, strict=True):
            after = before if isinstance(before, str) else attempt(model, example, choice)
            if isinstance(before, str) or isinstance(after, str):
                failed.append((example.identifier, str(after)))
            else:
                pairs.append(Pair(example, before, after))
        progress(f"{number}/{len(examples)}")
    return found


def attempt(model: CateKVModel, example: Example, choice: Choice) -> Side | str:
    """One side of a comparison, or what went wrong with it."""
    from catekv.simcalkv.comparison import measure

    try:
        method = choice.of_length(choice.method(), len(example.context_ids), model.shape)
        return measure(model, example, method)
    except (UserError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run(request: Request, progress: Callable[[str], None] = lambda text: None) -> list[Results]:
    """Compare, write the files, and return what was measured, method by method.

    Raises:
        UserError: wrong input; the message says what and what to do.
    """
    model = open_model(request.model, request.dtype, request.device)
    reading = with_window(request.reading, model)
    examples = load(request.dataset, request.split, model.tokenizer, reading)

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
        refuse_foreign(request.output, results(choice, [], []))
    measured = compare(model, examples, request.choices, progress)
    found = [
        results(choice, *pairs) for choice, pairs in zip(request.choices, measured, strict=True)
    ]
    for one in found:
        write(request.output, one)
    return found


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
