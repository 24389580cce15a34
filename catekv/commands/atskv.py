"""``catekv atskv train | show``."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.calibration.relevance.fitting import FEATURES
from catekv.calibration.relevance.labels import ATTENDED, LABELS, SCALES, WEIGHTS
from catekv.commands.arguments import add_template_argument
from catekv.commands.numbers import whole
from catekv.errors import UserError
from catekv.files import check_folder, write_json
from catekv.methods.atskv.files import (
    DESCRIPTION_FILE,
    TENSOR_FILE,
    PredictorSet,
    load_predictors,
    save_predictors,
)
from catekv.methods.atskv.relevance import ATTENTION_FEATURES, KINDS
from catekv.options import MOST_EPOCHS, MOST_SAMPLES
from catekv.tasks.core.prompt import template_name

if TYPE_CHECKING:
    from catekv.calibration.relevance.training import TrainingSettings
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

#: random stream of training texts: neither tests nor calibration read it
STREAM = "atskv-training"
CURVE_JSON, CURVE_PNG = "curve.json", "curve.png"
#: the published training: 10 synthetic texts at each of three lengths, one step per text
PUBLISHED = {
    "task": ["synthetic"],
    "lengths": ["512", "1024", "2048"],
    "samples": 10,
    "epochs": 5,
    "learning_rate": 1e-4,
    "batch_tokens": 0,
    "label": "received",
    "scale": "max",
    "weight": "none",
}
RECOMMENDED = {
    "task": None,
    "lengths": ["1024"],
    "samples": 20,
    "epochs": 5,
    "learning_rate": 1e-3,
    "batch_tokens": 128,
    "label": "later",
    "scale": "rank",
    "weight": "mass",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two actions and their options."""
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=type(parser), dest="action"
    )
    _train_arguments(actions.add_parser("train", help="train relevance predictors on a task"))
    show = actions.add_parser("show", help="print how trained predictors were made and how good")
    show.add_argument("folder", type=Path)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return {"train": _train, "show": _show}[arguments.action](arguments)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from catekv.commands.cli import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument("--task", nargs="+", help="tasks or JSONL files whose prompts are read")
    parser.add_argument("--lengths", nargs="+", help="prompt tokens (default: 1024)")
    parser.add_argument(
        "--samples", type=whole(1, MOST_SAMPLES), help="texts per task and length (default: 20)"
    )
    parser.add_argument(
        "--held-out", type=int, default=4, help="further texts to measure on (default: 4)"
    )
    parser.add_argument(
        "--task-option", action="append", default=[], metavar="NAME=VALUE", help="of the tasks"
    )
    parser.add_argument("--epochs", type=whole(1, MOST_EPOCHS), help="(default: 5)")
    parser.add_argument("--learning-rate", type=float, help="of Adam (default: 0.001)")
    parser.add_argument("--batch-tokens", type=int, help="per step; 0: a whole text (default: 128)")
    parser.add_argument(
        "--label", choices=LABELS,
        help="attention from the tokens after the context (later, default) or from the context "
        "itself (received, as published)",
    )  # fmt: skip
    parser.add_argument(
        "--scale", choices=SCALES,
        help="of labels: rank within the text (default) or share of the largest (max, as "
        "published)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=("recommended", "published"), default="recommended",
        help="where the options above have their defaults from",
    )  # fmt: skip
    parser.add_argument(
        "--weight", choices=WEIGHTS,
        help="of tokens in the loss: by the attention they receive (mass, default) or alike (none, "
        "as published)",
    )  # fmt: skip
    parser.add_argument("--features", nargs="+", default=list(FEATURES), choices=FEATURES)
    parser.add_argument("--kind", choices=KINDS, default="mlp", help="(default: mlp)")
    parser.add_argument("--width", type=int, default=32, help="hidden units (default: 32)")
    parser.add_argument("--feature-dim", type=int, default=64, help="(default: 64)")
    parser.add_argument("--attention-feature", choices=ATTENTION_FEATURES, default="vector")
    parser.add_argument(
        "--causal-normalised", action=argparse.BooleanOptionalAction, default=True,
        help="divide received attention by the queries that can see a token (default)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42)
    add_template_argument(parser)
    parser.add_argument("--chunk-size", type=int, default=8192, help="tokens per prefill chunk")
    parser.add_argument("--output", type=Path, required=True, help="folder of the predictors")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--no-plot", action="store_true", help="no picture of the losses")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _train(arguments: argparse.Namespace) -> int:
    from catekv.calibration.relevance.curve import draw_curve
    from catekv.calibration.relevance.reading import texts_of
    from catekv.calibration.relevance.training import train
    from catekv.commands.cli import integers
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import model_path, open_model, revision_of, split_list

    _fill(arguments)
    settings = _settings(arguments)
    lengths = integers("--lengths", split_list(arguments.lengths))
    if arguments.samples < 1 or arguments.held_out < 0:
        raise UserError("--samples must be at least 1 and --held-out at least 0")
    _check_output(arguments.output, arguments.overwrite)
    request = Request(
        model=arguments.model, dtype=arguments.dtype, device=arguments.device,
        attention=arguments.attention,
    )  # fmt: skip
    model = open_model(request)
    clock = time.perf_counter()
    kept, measured = _samples(model, arguments, lengths)
    say = (lambda text: None) if arguments.quiet else _Progress()
    read = (template_name(arguments.chat_template), arguments.chunk_size)
    texts = texts_of(model, kept, 32, *read)
    held_out = texts_of(model, measured, 32, *read)
    path = model_path(request)
    meta = {
        "model": "embedded" if request.embedded else path,
        "model_hash": environment.model_identity(path, revision_of(model)),
        "tasks": list(arguments.task),
        "lengths": list(lengths),
        "samples": arguments.samples,
        "held_out_samples": arguments.held_out,
        "stream": STREAM,
        "data": sorted({str(sample.metadata.get("data", "generated")) for sample in kept}),
    }
    trained = train(
        model, texts, held_out, settings, meta=meta, chunk_size=arguments.chunk_size, progress=say
    )
    save_predictors(arguments.output, trained.predictors)
    write_json(arguments.output / CURVE_JSON, trained.curve, indent=1)
    if not arguments.no_plot:
        draw_curve(arguments.output / CURVE_PNG, trained.curve)
    if not arguments.quiet:
        print(file=sys.stderr)
    print(describe(load_predictors(arguments.output)))
    print(f"\nPredictors: {arguments.output} ({time.perf_counter() - clock:.0f} s)")
    return 0


def _fill(arguments: argparse.Namespace) -> None:
    """Put the preset's values where the user gave none."""
    preset = PUBLISHED if arguments.preset == "published" else RECOMMENDED
    for name, value in preset.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if not arguments.task:
        raise UserError("say which prompts to train on, e.g. --task ruler/niah_multikey_2")


def _settings(arguments: argparse.Namespace) -> TrainingSettings:
    from dataclasses import fields

    from catekv.calibration.relevance.training import TrainingSettings

    values = {item.name: getattr(arguments, item.name) for item in fields(TrainingSettings)}
    return TrainingSettings(**{**values, "features": tuple(values["features"])})


def _check_output(folder: Path, overwrite: bool) -> None:
    if any((folder / name).exists() for name in (DESCRIPTION_FILE, TENSOR_FILE)) and not overwrite:
        raise UserError(f"{folder} holds predictors; use --overwrite or another --output")
    # a folder that is there may still refuse files, and training is long
    check_folder(folder)


def _samples(
    model: CateKVModel, arguments: argparse.Namespace, lengths: Sequence[int]
) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from and to measure on."""
    from catekv import tasks
    from catekv.commands.cli import options_from
    from catekv.evaluation.run.cells import is_file

    if model.tokenizer is None:
        raise UserError("the model has no tokenizer; tasks are text")
    options: dict[str, Any] = options_from("--task-option", arguments.task_option)
    wanted = arguments.samples + arguments.held_out
    kept: list[Sample] = []
    measured: list[Sample] = []
    for task in arguments.task:
        if is_file(task):
            built = [tasks.read(task)[:wanted]]
        else:
            built = [
                tasks.build(
                    task, model.tokenizer, length, wanted, arguments.seed, stream=STREAM,
                    chat_template=template_name(arguments.chat_template), **options,
                )
                for length in lengths
            ]  # fmt: skip
        for samples in built:
            if len(samples) <= arguments.held_out:
                raise UserError(
                    f"{task} has {len(samples)} samples, too few to hold {arguments.held_out} out; "
                    "lower --held-out"
                )
            first = len(samples) - arguments.held_out
            kept += samples[:first]
            measured += samples[first:]
    return kept, measured


class _Progress:
    """One line that says what is being read."""

    def __init__(self) -> None:
        self.last, self.count = "", 0

    def __call__(self, what: str) -> None:
        self.count = self.count + 1 if what == self.last else 1
        self.last = what
        print(f"\r{what}: {self.count} texts   ", end="", file=sys.stderr)


def describe(predictors: PredictorSet) -> str:
    """What a predictor file says, for people."""
    meta, config = predictors.meta, predictors.config
    lines = [
        f"{len(predictors.layers)} layers, {config.kind}, {config.inputs} inputs, "
        f"model {meta.get('model', 'unknown')}",
    ]
    settings = meta.get("settings")
    if settings:
        lines.append(
            f"label {settings['label']}, scale {settings['scale']}, weight {settings['weight']}, "
            f"features {', '.join(settings['features'])}; trained on "
            f"{', '.join(meta.get('tasks', ['?']))}"
        )
    for epoch, row in enumerate(meta.get("curve", ()), 1):
        held_out = "" if row["held_out"] is None else f", held out {row['held_out']:.4f}"
        lines.append(f"epoch {epoch}: loss {row['train']:.4f}{held_out}")
    if meta.get("held_out"):
        lines.append(
            "layer  rank correlation  recall of attended  attention kept  above 0.8  below 0.2"
        )
        for layer, one in enumerate(meta["held_out"]):
            lines.append(
                f"{layer:5}  {_number(one['correlation']):>16}  {one['recall']:18.3f}  "
                f"{_number(one['mass']):>14}  {one['above']:9.3f}  {one['below']:9.3f}"
            )
        lines.append(
            f"recall: share of the {100 * ATTENDED:g}% most attended tokens among the 30% most "
            "relevant; attention kept: share of the later attention that those received"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _show(arguments: argparse.Namespace) -> int:
    print(describe(load_predictors(arguments.folder)))
    return 0
