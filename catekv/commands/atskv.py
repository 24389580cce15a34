"""``catekv atskv train | show``."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.calibration.relevance.curve import draw_curve
from catekv.calibration.relevance.labels import ATTENDED
from catekv.calibration.relevance.reading import texts_of
from catekv.calibration.relevance.training import TrainingSettings, train
from catekv.commands.arguments import PROGRESS
from catekv.commands.described import described
from catekv.commands.progress import counted
from catekv.commands.schema import Action, Group
from catekv.errors import UserError
from catekv.evaluation.options import (
    MOST_SAMPLES,
    REQUIRED,
    option,
    refuse_source_twice,
    refuse_twice,
    refuse_unheeded,
)
from catekv.evaluation.run.cells import is_file
from catekv.evaluation.run.request import MODEL, Request
from catekv.files import check_folder, write_json
from catekv.methods.atskv.files import (
    DESCRIPTION_FILE,
    TENSOR_FILE,
    PredictorSet,
    load_predictors,
    save_predictors,
)

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

#: random stream of training texts: neither tests nor calibration read it
STREAM = "atskv-training"
CURVE_JSON, CURVE_PNG = "curve.json", "curve.png"
#: the published training: 10 synthetic texts at each of three lengths, one step per text
PUBLISHED: dict[str, Any] = {
    "task": ("synthetic",),
    "lengths": (512, 1024, 2048),
    "samples": 10,
    "epochs": 5,
    "learning_rate": 1e-4,
    "batch_tokens": 0,
    "label": "received",
    "scale": "max",
    "weight": "none",
}
#: what of a training a preset decides where the user does not
_PRESET = ("epochs", "learning_rate", "batch_tokens", "label", "scale", "weight")
RECOMMENDED: dict[str, Any] = {
    "task": (),
    "lengths": (1024,),
    "samples": 20,
    **{name: getattr(TrainingSettings, name) for name in _PRESET},
}


@dataclass(frozen=True)
class Trained:
    """What predictors are trained on, and where they go."""

    output: Path = option(REQUIRED, "folder of the predictors")
    task: tuple[str, ...] = option((), "tasks or JSONL files whose prompts are read", verbatim=True)
    lengths: tuple[int, ...] = option((), "prompt tokens (default: 1024)")
    samples: int | None = option(
        None, "texts per task and length (default: 20)", least=1, most=MOST_SAMPLES
    )
    held_out: int = option(
        4, "further texts to measure on (default: {default})", least=0, most=MOST_SAMPLES
    )
    task_options: Mapping[str, Any] = option(
        {}, "of the tasks; may be repeated", flag="--task-option", metavar="NAME=VALUE"
    )
    preset: str = option(
        "recommended",
        "where lengths, samples, epochs, learning rate, batch tokens, label, scale and weight have "
        "their defaults from",
        choices=("recommended", "published"),
    )
    overwrite: bool = option(False, "replace what is there")
    plot: bool = option(True, "a picture of the losses (default)")


@dataclass(frozen=True)
class Shown:
    """Predictors to show."""

    folder: Path = option(REQUIRED, "folder of the predictors", positional=True)


REQUEST = Group(Request, (*MODEL, "chat_template", "chunk_size"))
TRAINED = Group(Trained)
SETTINGS = Group(
    TrainingSettings,
    defaults=dict.fromkeys(_PRESET),
    helps={
        "epochs": f"(default: {TrainingSettings.epochs})",
        "learning_rate": f"of Adam (default: {TrainingSettings.learning_rate}; published: "
        f"{PUBLISHED['learning_rate']})",
        "batch_tokens": "per step; 0: a whole text, as published (default: "
        f"{TrainingSettings.batch_tokens})",
    },
)


def asked_for(arguments: argparse.Namespace) -> tuple[Trained, TrainingSettings]:
    """What a command line asks for; the preset's values stand where it says nothing.

    Raises:
        UserError: no task to train on, one or a length given twice, or options that nothing reads.
    """
    written = TRAINED.read(arguments)
    refuse_source_twice("--task", written.task)
    refuse_twice("--lengths", written.lengths)
    if written.task and all(map(is_file, written.task)):
        refuse_unheeded(written, ("lengths", "task_options"), "files hold their samples")
    preset = PUBLISHED if arguments.preset == "published" else RECOMMENDED
    for name, value in preset.items():
        if getattr(arguments, name) in (None, ()):
            setattr(arguments, name, value)
    if not arguments.task:
        raise UserError("say which prompts to train on, e.g. --task ruler/niah_multikey_2")
    settings = SETTINGS.read(arguments)
    refuse_twice("--features", settings.features)
    if settings.kind == "linear":
        refuse_unheeded(settings, ("width",), "a linear predictor has no hidden units")
    if "attention" not in settings.features:
        read = ("attention_feature", "causal_normalised")
        refuse_unheeded(settings, read, "--features leaves out attention")
    if "handcrafted" not in settings.features:
        refuse_unheeded(settings, ("feature_dim",), "--features leaves out handcrafted ones")
    return TRAINED.read(arguments), settings


def _train(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.run.session import open_model

    asked, settings = asked_for(arguments)
    request = REQUEST.read(arguments)
    _check_output(asked.output, asked.overwrite)
    model = open_model(request, for_text=True)
    clock = time.perf_counter()
    kept, measured = _samples(model, asked, settings.seed, request.chat_template)
    read = (request.chat_template, request.chunk_size)
    trained = train(
        model,
        texts_of(model, kept, 32, *read),
        texts_of(model, measured, 32, *read),
        settings,
        meta=_meta(model, request, asked, kept),
        chunk_size=request.chunk_size,
        progress=(lambda text: None) if arguments.quiet else counted(),
    )
    save_predictors(asked.output, trained.predictors)
    write_json(asked.output / CURVE_JSON, trained.curve, indent=1)
    if asked.plot:
        draw_curve(asked.output / CURVE_PNG, trained.curve)
    if not arguments.quiet:
        print(file=sys.stderr)
    print(describe(load_predictors(asked.output)))
    print(f"\nPredictors: {asked.output} ({time.perf_counter() - clock:.0f} s)")
    return 0


def _meta(
    model: CateKVModel, request: Request, asked: Trained, kept: Sequence[Sample]
) -> dict[str, Any]:
    """What the predictors' file says of their making."""
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import revision_of

    path = request.model_path
    return {
        "model": "embedded" if request.embedded else path,
        "model_hash": environment.model_identity(path, revision_of(model)),
        "tasks": list(asked.task),
        "lengths": list(asked.lengths),
        "samples": asked.samples,
        "held_out_samples": asked.held_out,
        "stream": STREAM,
        "data": sorted({str(sample.metadata.get("data", "generated")) for sample in kept}),
    }


def _check_output(folder: Path, overwrite: bool) -> None:
    if any((folder / name).exists() for name in (DESCRIPTION_FILE, TENSOR_FILE)) and not overwrite:
        raise UserError(f"{folder} holds predictors; use --overwrite or another --output")
    # a folder that is there may still refuse files, and training is long
    check_folder(folder)


def _samples(
    model: CateKVModel, asked: Trained, seed: int, chat_template: str
) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from and to measure on."""
    from catekv import tasks

    assert asked.samples is not None
    wanted = asked.samples + asked.held_out
    kept: list[Sample] = []
    measured: list[Sample] = []
    for task in asked.task:
        if is_file(task):
            built = [tasks.read(task)[:wanted]]
        else:
            built = [
                tasks.build(
                    task, model.tokenizer, length, wanted, seed, stream=STREAM,
                    chat_template=chat_template, **asked.task_options,
                )
                for length in asked.lengths
            ]  # fmt: skip
        for samples in built:
            if len(samples) <= asked.held_out:
                raise UserError(
                    f"{task} has {len(samples)} samples, too few to hold {asked.held_out} out; "
                    "lower --held-out"
                )
            first = len(samples) - asked.held_out
            kept += samples[:first]
            measured += samples[first:]
    return kept, measured


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
    folder = arguments.folder
    found = load_predictors(folder)
    print(described(describe, found, folder, "predictors", "catekv atskv train"))
    return 0


OPTIONS = {
    "train": Action(
        "train relevance predictors on a task", (REQUEST, TRAINED, SETTINGS, PROGRESS), _train
    ),
    "show": Action("print how trained predictors were made and how good", (Group(Shown),), _show),
}
