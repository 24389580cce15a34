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

from catekv.cokv.coalitions import QUESTIONS, WINDOW
from catekv.cokv.display import correlation, describe, draw_scores, rank_correlation
from catekv.cokv.files import ScoreFile, merged
from catekv.cokv.game import ACCUMULATORS, require_visited
from catekv.cokv.published import read_published
from catekv.cokv.scoring import Settings, score
from catekv.cokv.split import SampleSet, find_split
from catekv.cokv.tuning import ALPHA_FILE, tune
from catekv.errors import UserError

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.sample import Sample

#: On the embedded model, and where nothing is said.
DEFAULT_LENGTH, DEFAULT_SAMPLES = 512, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three actions and their options."""
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=type(parser), dest="action"
    )
    _score_arguments(actions.add_parser("score", help="what every KV head is worth for a task"))
    _tune_arguments(actions.add_parser("tune", help="choose alpha on the validation samples"))
    _show_arguments(actions.add_parser("show", help="print, compare, convert or draw scores"))


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    actions = {"score": _score, "tune": _tune, "show": _show}
    return actions[arguments.action](arguments)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    from catekv.cli import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--batch-size", type=int, default=32, help="sequences decoded together (default: 32)"
    )
    parser.add_argument(
        "--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("--task", required=True, help="task name or JSONL file")
    parser.add_argument(
        "--length", type=int, default=DEFAULT_LENGTH, help="prompt tokens (default: 512)"
    )
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="(default: 20)")
    parser.add_argument(
        "--task-option", action="append", default=[], metavar="NAME=VALUE", help="of the task"
    )
    parser.add_argument(
        "--split",
        type=Path,
        help="file of splits: the validation samples of --task are used, instead of --length, "
        "--samples and --task-option",
    )
    parser.add_argument(
        "--slices",
        nargs="+",
        default=[],
        metavar="J",
        help="coalition sizes, e.g. 32,64,96,128 (default: 1/8, 1/4, 3/8 and 1/2 of the heads)",
    )
    parser.add_argument("--seed", type=int, default=42, help="of samples and draws (default: 42)")
    parser.add_argument(
        "--check-every", type=int, default=5, help="draws per slice and run between two checks"
    )
    parser.add_argument(
        "--max-draws", type=int, default=500, help="per slice and run (default: 500)"
    )
    parser.add_argument(
        "--tolerance", type=float, help="stop below this MAE (default: 1 / number of heads)"
    )
    parser.add_argument(
        "--window", type=int, default=WINDOW, help="last tokens that every head sees (default: 8)"
    )
    parser.add_argument(
        "--question",
        choices=QUESTIONS,
        default="published",
        help="published (default): the whole prompt is read before heads are masked; aware: all "
        "but its last token; agnostic: the context without the question",
    )
    parser.add_argument("--chat-template", default="auto", help="as in catekv evaluate")
    parser.add_argument("--processes", default="1/1", metavar="I/N", help="this process, e.g. 2/8")
    parser.add_argument(
        "--keep-prompts",
        action="store_true",
        help="hold the dense caches of all samples instead of one at a time",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for state and scores")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with what is in the folder (default)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete what is in the folder first"
    )


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("--scores", type=Path, required=True, help="file of catekv cokv score")
    parser.add_argument(
        "--capacities",
        "--budgets",
        nargs="+",
        required=True,
        metavar="TOKENS",
        help="mean entries per head, the window included",
    )
    parser.add_argument(
        "--alphas", nargs="+", default=[], metavar="N", help="(default: 1 5 10 15 20 30 40)"
    )
    parser.add_argument("--output", type=Path, help="file (default: alpha.json beside the scores)")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, help="npz, or published npy files")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="read published files, which are pickles"
    )
    parser.add_argument(
        "--shape", metavar="LAYERSxHEADS", help="of published files, which do not say it"
    )
    parser.add_argument(
        "--use", choices=ACCUMULATORS, default="both", help="accumulators (left: as released)"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="NPZ", help="print the correlation with these scores"
    )
    parser.add_argument("--picture", type=Path, help="draw heat maps into this PNG or SVG file")
    parser.add_argument("--output", type=Path, help="write the scores as npz")


def _score(arguments: argparse.Namespace) -> int:
    from catekv.cli import integers, options_from
    from catekv.evaluation.session import split_list

    part, parts = _process(arguments.processes)
    settings = Settings(
        slices=integers("--slices", split_list(arguments.slices)),
        seed=arguments.seed,
        check_every=arguments.check_every,
        max_draws=arguments.max_draws,
        tolerance=arguments.tolerance,
        window=arguments.window,
        question=arguments.question,
        chat_template=arguments.chat_template,
        part=part,
        parts=parts,
    )
    if not arguments.resume and not arguments.overwrite and arguments.output.exists():
        raise UserError(f"{arguments.output} exists; use --overwrite or another --output")
    split = find_split(arguments.split, arguments.task) if arguments.split else None
    wanted = SampleSet(
        arguments.task,
        arguments.length,
        arguments.samples,
        arguments.seed,
        options_from("--task-option", arguments.task_option),
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
    if not (slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise UserError(f"--processes takes I/N with I from 1 to N, not {text!r}; e.g. 2/8")
    return int(first) - 1, int(second)


def _open(arguments: argparse.Namespace) -> tuple[CateKVModel, dict[str, Any]]:
    """The model, and what the recipe says of it."""
    from catekv.evaluation import environment
    from catekv.evaluation.session import Request, model_path, open_model, revision_of

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
    from catekv.cli import integers
    from catekv.evaluation.session import split_list

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
    from catekv.evaluation.cells import sample_hash

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
