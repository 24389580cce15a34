"""``catekv cokv score | tune | show``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from catekv.calibration.cokv.display import correlation, describe, draw_scores, rank_correlation
from catekv.calibration.cokv.files import ScoreFile, merged
from catekv.calibration.cokv.game import require_visited
from catekv.calibration.cokv.published import read_published
from catekv.calibration.cokv.scoring import score
from catekv.calibration.cokv.split import SCORE_STREAM, SampleSet, Split, find_split
from catekv.calibration.cokv.tuning import tune
from catekv.commands.arguments import PROGRESS
from catekv.commands.cokv_arguments import (
    MODEL_REQUEST,
    SCORED,
    SETTINGS,
    SHOWN,
    TUNED,
    Scored,
    Shown,
)
from catekv.commands.numbers import MOST_PARTS, shown
from catekv.commands.schema import Action
from catekv.errors import UserError
from catekv.evaluation.options import refuse_source_twice, refuse_unheeded
from catekv.evaluation.run.cells import is_file
from catekv.files import check_new_file

if TYPE_CHECKING:
    from catekv.evaluation.run.request import Request
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample


def _score(arguments: argparse.Namespace) -> int:
    asked, request = SCORED.read(arguments), MODEL_REQUEST.read(arguments)
    part, parts = _process(asked.processes)
    settings = SETTINGS.read(arguments, part=part, parts=parts)
    if not asked.resume and not asked.overwrite and asked.output.exists():
        raise UserError(f"{asked.output} exists; use --overwrite or another --output")
    if asked.overwrite and parts > 1:
        raise UserError(
            "--overwrite of one process deletes the draws of the others; remove the folder before "
            "the processes start"
        )
    if asked.split:
        made = ("length", "samples", "task_options")
        refuse_unheeded(asked, made, f"{asked.split} says which samples are taken")
    elif is_file(asked.task):
        refuse_unheeded(asked, ("length", "task_options"), f"{asked.task} holds samples")
    split = find_split(asked.split, asked.task) if asked.split else None
    model, origin = _open(request)
    samples, origin["samples"] = _samples(asked, settings.seed, split, model)
    outcome = score(
        model,
        samples,
        asked.output,
        settings,
        batch_size=request.batch_size,
        keep_prompts=asked.keep_prompts,
        chunk_size=request.chunk_size,
        overwrite=asked.overwrite,
        origin=origin,
        progress=not arguments.quiet,
    )
    if outcome.path is None:
        print(
            f"Part {part + 1} of {parts} is done; the scores are written by the process that "
            "finishes last, or by this command again."
        )
        return 0
    print(describe(ScoreFile.load(outcome.path)))
    print(f"\nScores: {outcome.path}")
    if not outcome.converged:
        print(
            "warning: the two runs do not agree yet; raise --max-draws and run this again",
            file=sys.stderr,
        )
    return 0


def _samples(
    asked: Scored, seed: int, split: Split | None, model: CateKVModel
) -> tuple[Sequence[Sample], dict[str, Any]]:
    """The samples to score on, and what the recipe says of them."""
    if split is None:
        wanted = SampleSet(
            asked.task, asked.length, asked.samples, seed, dict(asked.task_options), SCORE_STREAM
        )
        samples = wanted.build(model.tokenizer)
        positions = list(range(len(samples)))
    else:
        wanted = split.samples
        samples = split.build("validation", model.tokenizer)
        positions = list(split.validation)
    return samples, {**dataclasses.asdict(wanted), "positions": positions}


def _process(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    place, count = (
        int(part) if part.isdecimal() and len(part) <= 9 else 0 for part in (first, second)
    )
    if not (slash and 1 <= place <= count <= MOST_PARTS):
        raise UserError(
            f"--processes takes I/N with I from 1 to N, N at most {MOST_PARTS}, not "
            f"{shown(text)}; e.g. 2/8"
        )
    return place - 1, count


def _open(request: Request) -> tuple[CateKVModel, dict[str, Any]]:
    """The model, and what the recipe says of it."""
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import open_model, revision_of

    model = open_model(request, for_text=True)
    identity = environment.model_identity(request.model_path, revision_of(model))
    name = "embedded" if request.embedded else request.model_path
    return model, {"model": name, "model_hash": identity}


def _tune(arguments: argparse.Namespace) -> int:
    asked, request = TUNED.read(arguments), MODEL_REQUEST.read(arguments)
    file = ScoreFile.load(asked.scores)
    check_new_file(asked.file, asked.overwrite)
    model, origin = _open(request)
    samples = validation_samples(file, model)
    with tqdm(total=len(samples), disable=arguments.quiet, desc="tune", unit="sample") as bar:
        tuned = tune(
            model,
            file,
            samples,
            asked.capacities,
            asked.alphas,
            batch_size=request.batch_size,
            chunk_size=request.chunk_size,
            advance=bar.update,
        )
    path = tuned.write(
        asked.file,
        scores=asked.scores.name,
        task=file.recipe.get("task"),
        validation_samples=len(samples),
        **origin,
    )
    for capacity in asked.capacities:
        row = "  ".join(
            f"{alpha}: {100 * one:.2f}" for alpha, one in tuned.scores[capacity].items()
        )
        print(f"capacity {capacity}: alpha {tuned.best(capacity)}   ({row})")
    print(f"Alpha: {path}")
    return 0


def validation_samples(file: ScoreFile, model: CateKVModel) -> list[Sample]:
    """The samples that scores were made on, built again.

    Raises:
        UserError: scores that do not say their samples, or samples that are no longer the same.
    """
    from catekv.evaluation.run.cells import sample_hash

    origin = file.recipe.get("samples")
    if not isinstance(origin, dict):
        raise UserError("the scores do not say their validation samples; score the model again")
    made = {name: value for name, value in origin.items() if name != "positions"}
    built = SampleSet(**made).build(model.tokenizer)
    found = [built[position] for position in origin["positions"] if position < len(built)]
    if [sample_hash(sample) for sample in found] != file.recipe["sample_hashes"]:
        raise UserError(
            f"the validation samples of {made['task']} are no longer those that the scores were "
            "made on (other data, tokenizer or version); score the model again"
        )
    return found


def _show(arguments: argparse.Namespace) -> int:
    asked = SHOWN.read(arguments)
    published = [path for path in asked.paths if path.suffix == ".npy"]
    if published and len(published) < len(asked.paths):
        raise UserError("give npz files or published npy files, not both")
    if asked.trust_pickle and not published:
        raise UserError("npz files are no pickles; leave out --trust-pickle")
    if published:
        files = [_from_published(published, asked)]
    else:
        files = [ScoreFile.load(path) for path in asked.paths]
        for path, file in zip(asked.paths, files, strict=True):
            if asked.shape not in (None, f"{file.layers}x{file.kv_heads}"):
                raise UserError(
                    f"{path} is of {file.layers}x{file.kv_heads} heads; leave out --shape "
                    f"{asked.shape}"
                )
    if asked.output and len(files) > 1:
        raise UserError("--output writes one file; give one npz or the npy files of one task")
    refuse_source_twice("the list of scores", list(map(str, asked.paths)))
    print("\n\n".join(describe(file, asked.use) for file in files))
    if asked.compare:
        other = ScoreFile.load(asked.compare)
        for path, file in zip(asked.paths, files, strict=False):
            pair = file.scores(asked.use), other.scores(asked.use)
            print(
                f"\n{path} and {asked.compare}: correlation {correlation(*pair):.3f}, of "
                f"ranks {rank_correlation(*pair):.3f}"
            )
    if asked.picture:
        short = [f"{path.parent.name}/{path.stem}" for path in asked.paths]
        names = short if len(set(short)) == len(short) else list(map(str, asked.paths))
        tables = {name: file.scores(asked.use) for name, file in zip(names, files, strict=False)}
        print(f"\nPicture: {draw_scores(asked.picture, tables)}")
    if asked.output:
        print(f"\nScores: {files[0].save(asked.output)}")
    return 0


def _from_published(paths: Sequence[Path], asked: Shown) -> ScoreFile:
    """The slices of one task from files in the published layout."""
    layers, _, heads = (asked.shape or "").partition("x")
    if asked.trust_pickle and not (layers.isdecimal() and heads.isdecimal()):
        raise UserError(
            "published files do not say the model's shape; give --shape LAYERSxHEADS, e.g. 32x8"
        )
    files = []
    for path in paths:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read = read_published(path, trust_pickle=asked.trust_pickle)
        for warning in caught:
            print(f"warning: {warning.message}", file=sys.stderr)
        require_visited([read.sums], int(heads), asked.use)
        origin = {"source": [path.name for path in paths], "layout": "published"}
        files.append(ScoreFile(int(layers), int(heads), ((read.sums,),), origin))
    return merged(files)


OPTIONS = {
    "score": Action(
        "what every KV head is worth for a task",
        (MODEL_REQUEST, PROGRESS, SCORED, SETTINGS),
        _score,
    ),
    "tune": Action(
        "choose alpha on the validation samples", (MODEL_REQUEST, PROGRESS, TUNED), _tune
    ),
    "show": Action("print, compare, convert or draw scores", (SHOWN,), _show),
}
