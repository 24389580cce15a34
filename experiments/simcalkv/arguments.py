"""Flags that the commands of this package share, and what they stand for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from catekv.commands.numbers import token_count
from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.run.request import Request
from catekv.tasks.rows.sources import SOURCES
from experiments.simcalkv.benchmarks import DATASETS, Example, Reading, load
from experiments.simcalkv.kv_methods import Choice, calibrations
from experiments.simcalkv.split import Split

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: options of a task, as its errors name them, and the flags that set them here
_FLAGS = (("path=FILE", "--data_path FILE"), ("source=", "--source "))
DEFAULT_MODEL = "meta-llama/Llama-2-7b-hf"
PLACE = Group(Request, ("dtype", "device"))
#: what of a prompt and an answer is given as to an evaluation
ASKED = Group(
    Request,
    ("max_new_tokens", "chat_template", "seed"),
    helps={
        "max_new_tokens": "of an answer (default: as published)",
        "chat_template": "auto, base or a template's name",
        "seed": "of generated rows (default: {default})",
    },
    separator="_",
)
PRESET = Group(Request, ("preset",), helps={"preset": "of the options (default: {default})"})


def add_model_arguments(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    """``--model_name``, ``--dtype`` and ``--device``."""
    parser.add_argument(
        "--model_name",
        default=default,
        help="folder or hub name of any causal language model (default: %(default)s)",
    )
    PLACE.add(parser)


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
    parser.add_argument(
        "--max_input_tokens", type=token_count, help="of a prompt (default: as published)"
    )
    ASKED.add(parser)


def add_method_arguments(parser: argparse.ArgumentParser, ratios: list[float]) -> None:
    """Which methods, and how much they remove."""
    parser.add_argument(
        "--compress_ratio",
        type=float,
        nargs="+",
        default=ratios,
        help=f"share of the prompt that is removed, 0 to 1 (default: {' '.join(map(str, ratios))})",
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
    PRESET.add(parser)


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


def choices_of(parsed: argparse.Namespace) -> tuple[Choice, ...]:
    """Every method at every ratio with every calibration.

    Raises:
        UserError: unknown methods, options out of range, a calibration without SimCalKV.
    """
    merging = any(name.lower() == "simcalkv" for name in parsed.kv_method)
    choices = tuple(
        Choice(name, ratio, parsed.similarity_threshold, calibration, parsed.preset)
        for name in parsed.kv_method
        for ratio in parsed.compress_ratio
        # beside SimCalKV, which has calibrations, others run without; else they refuse them
        for calibration in calibrations(
            None if merging and name.lower() != "simcalkv" else parsed.calibration
        )
    )
    for choice in choices:
        choice.method()  # refuses wrong options
    # what was asked for twice would be measured twice and be written into the same files
    return tuple({(choice.label, f"{choice.ratio:g}"): choice for choice in choices}.values())


def with_window(reading: Reading, model: CateKVModel) -> Reading:
    """The reading with the model's window filled in."""
    from catekv.models.compat import context_window

    return replace(reading, window=context_window(model.config))


def examples_of(dataset: str, split: Split, model: CateKVModel, reading: Reading) -> list[Example]:
    """The wanted rows for a model, see :func:`.benchmarks.load`; errors name flags."""
    try:
        return load(dataset, split, model.tokenizer, with_window(reading, model))
    except UserError as error:
        message = str(error)
        for option, flag in _FLAGS:
            message = message.replace(option, flag)
        raise UserError(message) from error
