"""Options and small steps that the CoKV experiments share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.headkv_probe import probe, write_probe
from catekv.calibration.cokv.scoring import SCORE_FILE, Settings
from catekv.commands.cli import Parser, run_safely
from catekv.commands.cokv_arguments import Scored, TuneOptions
from catekv.commands.numbers import item_count, token_count
from catekv.commands.schema import Group, add_options
from catekv.errors import UserError
from catekv.evaluation.run.request import MODEL, Request
from catekv.models.shape import config_hash
from experiments.cokv.predictions import short_name

if TYPE_CHECKING:
    from catekv.model import CateKVModel

REQUEST = Group(
    Request,
    (*MODEL, "tasks", "seed", "batch_size"),
    defaults={"batch_size": 32},
    helps={"batch_size": "sequences decoded together (default: {default})"},
)
QUESTION = Group(Settings, ("question",))
OUTPUT = Group(Scored, ("output",), helps={"output": "folder of the results"})
#: What alpha is chosen among, and at which cache sizes.
TUNING = Group(TuneOptions, ("capacities", "alphas"))


def parser(description: str | None) -> Parser:
    """A parser with the options of every experiment."""
    made = Parser(description=description)
    add_options(made, (REQUEST, QUESTION, OUTPUT))
    return made


def main(made: Parser, action: Callable[[argparse.Namespace], int]) -> None:
    """Parse, run and leave with the exit code of ``catekv``."""
    arguments = made.parse_args()
    sys.exit(run_safely(lambda: action(arguments)))


def open_model(arguments: argparse.Namespace) -> CateKVModel:
    """The model that the arguments name."""
    from catekv.evaluation.run import session

    return session.open_model(REQUEST.read(arguments), for_text=True)


def model_name(arguments: argparse.Namespace) -> str:
    return Path(arguments.model).name if arguments.model else "embedded"


def model_identity(arguments: argparse.Namespace, model: CateKVModel) -> str:
    """Which checkpoint it is: two of one name and configuration do not share draws."""
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import revision_of

    return environment.model_identity(REQUEST.read(arguments).model_path, revision_of(model))


def load_scores(folder: Path, task: str, model: CateKVModel) -> ScoreFile:
    """The scores of a task for this model; ``UserError`` if they are not there or another's."""
    path = folder / short_name(task) / SCORE_FILE
    if not path.exists():
        raise UserError(f"{path} is missing; run experiments/cokv/run_importance.sh first")
    file = ScoreFile.load(path)
    file.check_model(model.shape.layers, model.shape.kv_heads, config_hash(model.config))
    return file


def add_probe_options(made: Parser) -> None:
    """Options of :func:`head_scores`."""
    made.add_argument("--head-scores", type=Path, help="HeadKV's JSON instead of probing")
    made.add_argument("--probe-task", default="ruler/niah_multikey_1")
    made.add_argument("--probe-length", type=token_count, default=512)
    made.add_argument("--probe-samples", type=item_count, default=20)


def head_scores(arguments: argparse.Namespace, model: CateKVModel) -> Path:
    """HeadKV's scores of this model, probed once on needle samples of a stream of their own."""
    from catekv import tasks

    path: Path = arguments.head_scores or arguments.output / "headkv.json"
    if not path.exists():
        samples = tasks.build(
            arguments.probe_task,
            model.tokenizer,
            arguments.probe_length,
            arguments.probe_samples,
            arguments.seed,
            stream="headkv-probe",
        )
        write_probe(path, probe(model, samples))
    return path
