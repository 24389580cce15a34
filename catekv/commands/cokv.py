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
from catekv.calibration.cokv.scoring import Settings, score
from catekv.calibration.cokv.split import SCORE_STREAM, SampleSet, find_split
from catekv.calibration.cokv.tuning import ALPHA_FILE, tune
from catekv.commands.cokv_arguments import add_arguments as add_arguments
from catekv.commands.numbers import MOST_PARTS, shown
from catekv.errors import UserError
from catekv.tasks.core.prompt import template_name

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    actions = {"score": _score, "tune": _tune, "show": _show}
    return actions[arguments.action](arguments)


def _score(arguments: argparse.Namespace) -> int:
    from catekv.commands.cli import integers, options_from
    from catekv.evaluation.run.session import split_list

    part, parts = _process(arguments.processes)
    settings = Settings(
        slices=integers("--slices", split_list(arguments.slices)),
        seed=arguments.seed,
        check_every=arguments.check_every,
        max_draws=arguments.max_draws,
        tolerance=arguments.tolerance,
        window=arguments.window,
        question=arguments.question,
        chat_template=template_name(arguments.chat_template),
        part=part,
        parts=parts,
    )
    if not arguments.resume and not arguments.overwrite and arguments.output.exists():
        raise UserError(f"{arguments.output} exists; use --overwrite or another --output")
    if arguments.overwrite and parts > 1:
        raise UserError(
            "--overwrite of one process deletes the draws of the others; remove the folder before "
            "the processes start"
        )
    split = find_split(arguments.split, arguments.task) if arguments.split else None
    wanted = SampleSet(
        arguments.task,
        arguments.length,
        arguments.samples,
        arguments.seed,
        options_from("--task-option", arguments.task_option),
        SCORE_STREAM,
    )
    model, origin = _open(arguments)
    samples: Sequence[Sample]
    if split is None:
        samples = wanted.build(model.tokenizer)
        positions = list(range(len(samples)))
    else:
        wanted = split.samples
        samples = split.build("validation", model.tokenizer)
        positions = list(split.validation)
    origin["samples"] = {**dataclasses.asdict(wanted), "positions": positions}
    outcome = score(
        model,
        samples,
        arguments.output,
        settings,
        batch_size=arguments.batch_size,
        keep_prompts=arguments.keep_prompts,
        chunk_size=arguments.chunk_size,
        overwrite=arguments.overwrite,
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


def _open(arguments: argparse.Namespace) -> tuple[CateKVModel, dict[str, Any]]:
    """The model, and what the recipe says of it."""
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import model_path, open_model, revision_of

    request = Request(
        model=arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    model = open_model(request)
    if model.tokenizer is None:
        raise UserError(f"{model_path(request)} holds no tokenizer; tasks are text")
    identity = environment.model_identity(model_path(request), revision_of(model))
    name = "embedded" if request.embedded else model_path(request)
    return model, {"model": name, "model_hash": identity}


def _tune(arguments: argparse.Namespace) -> int:
    from catekv.commands.cli import integers
    from catekv.evaluation.run.session import split_list

    capacities = integers("--capacities", split_list(arguments.capacities))
    alphas = integers("--alphas", split_list(arguments.alphas))
    file = ScoreFile.load(arguments.scores)
    model, origin = _open(arguments)
    samples = validation_samples(file, model)
    with tqdm(total=len(samples), disable=arguments.quiet, desc="tune", unit="sample") as bar:
        tuned = tune(
            model,
            file,
            samples,
            capacities,
            alphas,
            batch_size=arguments.batch_size,
            chunk_size=arguments.chunk_size,
            advance=bar.update,
        )
    path = tuned.write(
        arguments.output or arguments.scores.with_name(ALPHA_FILE),
        scores=arguments.scores.name,
        task=file.recipe.get("task"),
        validation_samples=len(samples),
        **origin,
    )
    for capacity in capacities:
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
    published = [path for path in arguments.paths if path.suffix == ".npy"]
    if published and len(published) < len(arguments.paths):
        raise UserError("give npz files or published npy files, not both")
    if published:
        files = [_from_published(published, arguments)]
    else:
        files = [ScoreFile.load(path) for path in arguments.paths]
    print("\n\n".join(describe(file, arguments.use) for file in files))
    if arguments.compare:
        other = ScoreFile.load(arguments.compare)
        for path, file in zip(arguments.paths, files, strict=False):
            pair = file.scores(arguments.use), other.scores(arguments.use)
            print(
                f"\n{path} and {arguments.compare}: correlation {correlation(*pair):.3f}, of "
                f"ranks {rank_correlation(*pair):.3f}"
            )
    if arguments.picture:
        tables = {
            f"{path.parent.name}/{path.stem}": file.scores(arguments.use)
            for path, file in zip(arguments.paths, files, strict=False)
        }
        print(f"\nPicture: {draw_scores(arguments.picture, tables)}")
    if arguments.output:
        if len(files) > 1:
            raise UserError("--output writes one file; give one npz or the npy files of one task")
        print(f"\nScores: {files[0].save(arguments.output)}")
    return 0


def _from_published(paths: Sequence[Path], arguments: argparse.Namespace) -> ScoreFile:
    """The slices of one task from files in the published layout."""
    layers, _, heads = (arguments.shape or "").partition("x")
    if arguments.trust_pickle and not (layers.isdigit() and heads.isdigit()):
        raise UserError(
            "published files do not say the model's shape; give --shape LAYERSxHEADS, e.g. 32x8"
        )
    files = []
    for path in paths:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read = read_published(path, trust_pickle=arguments.trust_pickle)
        for warning in caught:
            print(f"warning: {warning.message}", file=sys.stderr)
        require_visited([read.sums], int(heads), arguments.use)
        origin = {"source": [path.name for path in paths], "layout": "published"}
        files.append(ScoreFile(int(layers), int(heads), ((read.sums,),), origin))
    return merged(files)
