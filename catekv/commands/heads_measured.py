"""``catekv heads curves | gates | kvzip | overlaps``: what heads are worth, measured on a model."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from catekv.calibration.heads.curves import measure_curves, read_texts, selector_of
from catekv.calibration.heads.gates import check_texts, text_of, train_gates
from catekv.calibration.heads.head_scores import JOINED, MAXIMUM, HeadScores
from catekv.commands.arguments import PROGRESS, TEXTS
from catekv.commands.heads_arguments import (
    CURVES,
    GATES,
    MEASURED,
    OVERLAPS,
    PLAIN_REQUEST,
    REQUEST,
    SEEDED_REQUEST,
)
from catekv.commands.schema import Action, Group
from catekv.errors import UserError
from catekv.files import check_new_file
from catekv.prefill.capacity import refuse_unless_fits

if TYPE_CHECKING:
    from catekv.evaluation.run.request import Request
    from catekv.model import CateKVModel


def _opened(
    arguments: argparse.Namespace, tokens: int, ask: Group = PLAIN_REQUEST
) -> tuple[CateKVModel, Request, dict[str, Any]]:
    """The model, what was asked of it, and what a recipe says of it.

    Raises:
        UserError: also for texts of ``tokens`` tokens that the model or the memory does not hold,
            before they are made.
    """
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import open_model, revision_of

    asked = MEASURED.read(arguments)
    check_new_file(asked.output, asked.overwrite)
    request = ask.read(arguments, model=asked.model)
    model = open_model(request, for_text=True)
    model.refuse_beyond_window(tokens)
    refuse_unless_fits(model.model, None, tokens, 1, None, model.device, model.shape)
    path = request.model_path
    origin = {
        "model": "embedded" if request.embedded else path,
        "model_hash": environment.model_identity(path, revision_of(model)),
    }
    return model, request, origin


def _written(arguments: argparse.Namespace, scores: HeadScores, use: str) -> int:
    output = MEASURED.read(arguments).output
    if np.ptp(scores.scores) == 0:
        raise UserError(
            f"all heads got {scores.scores.flat[0]:g}, so that none is worth more than another; "
            "measure on more or longer texts"
        )
    scores.save(output)
    print(describe(scores))
    print(f"Heads: {output}")
    print(f"Use them: {use.format(output)}")
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    settings = CURVES.read(arguments)
    selector_of(settings.selector)  # refused before a model is loaded
    model, request, origin = _opened(arguments, settings.length, REQUEST)
    texts = read_texts(model, settings, request.chat_template)
    with tqdm(total=len(texts), disable=arguments.quiet, desc="curves", unit="text") as bar:
        scores = measure_curves(model, texts, settings, origin=origin, advance=bar.update)
    return _written(arguments, scores, "--methods curvekv:curves={},keep=0.25")


def _gates(arguments: argparse.Namespace) -> int:
    settings = GATES.read(arguments)
    check_texts(settings)
    model, _, origin = _opened(arguments, settings.length)
    text_of(model, settings, 0)  # refused before the bar begins
    with tqdm(total=settings.steps, disable=arguments.quiet, desc="gates", unit="step") as bar:

        def advance(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        scores = train_gates(model, settings, origin=origin, advance=advance)
    return _written(arguments, scores, "catekv mask convert {} DIR --ratios 0.5")


def _kvzip(arguments: argparse.Namespace) -> int:
    from catekv.calibration.kvzip.heads import score_heads
    from catekv.methods.formulas.repeat import Repeat
    from catekv.models.shape import config_hash

    texts = TEXTS.read(arguments)
    model, request, origin = _opened(arguments, texts.length, SEEDED_REQUEST)
    pieces = texts.pieces(model.tokenizer, request.seed)
    began, processor = time.perf_counter(), time.process_time()
    with tqdm(total=len(pieces), disable=arguments.quiet, desc="kvzip", unit="text") as bar:
        found = score_heads(model, pieces, Repeat(), progress=lambda _: bar.update())
    recipe = {
        "kind": "kvzip", **asdict(texts), "pieces": len(pieces), "seed": request.seed,
        JOINED: MAXIMUM, "config_hash": config_hash(model.config), **origin,
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }  # fmt: skip
    scores = HeadScores(np.asarray(found.double().numpy()), recipe)
    return _written(arguments, scores, "catekv mask convert {} DIR --ratios 0.4 0.6")


def _overlaps(arguments: argparse.Namespace) -> int:
    from catekv.calibration.heads.overlaps import score_by_overlaps
    from catekv.models.shape import config_hash

    texts, settings = TEXTS.read(arguments), OVERLAPS.read(arguments)
    model, request, origin = _opened(arguments, texts.length + settings.steps, SEEDED_REQUEST)
    pieces = texts.pieces(model.tokenizer, request.seed)
    began, processor = time.perf_counter(), time.process_time()
    with tqdm(total=len(pieces), disable=arguments.quiet, desc="overlaps", unit="text") as bar:
        found, arrays = score_by_overlaps(model, pieces, settings, bar.update)
    recipe = {
        "kind": "heterocache", **asdict(texts), **asdict(settings), "pieces": len(pieces),
        "seed": request.seed, "config_hash": config_hash(model.config), **origin,
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
    }  # fmt: skip
    scores = HeadScores(found, recipe, arrays)
    return _written(arguments, scores, "--methods headkv:scores={},keep=0.25")


def describe(scores: HeadScores, shown: int = 5) -> str:
    """The heads that are worth most and least, with their intervals."""
    values, bounds = scores.scores, scores.intervals()
    order = values.argsort(axis=None, kind="stable")[::-1].tolist()

    def line(place: int) -> str:
        head = divmod(place, scores.shape[1])
        text = f"  layer {head[0]} head {head[1]}: {values[head]:.4g}"
        return (
            text if bounds is None else f"{text} ({bounds[0][head]:.4g} .. {bounds[1][head]:.4g})"
        )

    title = (
        f"{values.size} heads ({scores.shape[0]} layers x {scores.shape[1]}), "
        f"{len(scores.samples)} samples, {scores.recipe.get('seconds', '?')} s"
    )
    most, least = map(line, order[:shown]), map(line, order[-shown:])
    return "\n".join([title, "most", *most, "least", *least])


ACTIONS = {
    "overlaps": Action(
        "group heads by the tokens that they look at while decoding (HeteroCache)",
        (MEASURED, TEXTS, OVERLAPS, SEEDED_REQUEST, PROGRESS),
        _overlaps,
    ),
    "curves": Action(
        "measure what every head loses at every share of its entries",
        (MEASURED, CURVES, REQUEST, PROGRESS),
        _curves,
    ),
    "gates": Action(
        "train DuoAttention's gates on passkeys in prose",
        (MEASURED, GATES, PLAIN_REQUEST, PROGRESS),
        _gates,
    ),
    "kvzip": Action(
        "score heads by a repetition of texts (KVzip)",
        (MEASURED, TEXTS, SEEDED_REQUEST, PROGRESS),
        _kvzip,
    ),
}
