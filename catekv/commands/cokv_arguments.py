"""Options of ``catekv cokv score | tune | show``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.calibration.cokv.game import ACCUMULATORS
from catekv.calibration.cokv.journal import ALPHA_FILE
from catekv.calibration.cokv.scoring import Settings
from catekv.commands.schema import Group
from catekv.evaluation.options import COUNT, MOST_SAMPLES, REQUIRED, option, refuse_twice
from catekv.evaluation.run.request import MODEL, Request


@dataclass(frozen=True)
class Scored:
    """What heads are scored on, and where scores go."""

    task: str = option(REQUIRED, "task name or JSONL file")
    output: Path = option(REQUIRED, "folder for state and scores")
    length: int = option(512, "prompt tokens (default: {default})", **COUNT)
    samples: int = option(20, "(default: {default})", least=1, most=MOST_SAMPLES)
    task_options: Mapping[str, Any] = option(
        {}, "of the task; may be repeated", flag="--task-option", metavar="NAME=VALUE"
    )
    split: Path | None = option(
        None,
        "file of splits: the validation samples of --task are used, instead of --length, --samples "
        "and --task-option",
    )
    processes: str = option("1/1", "this process, e.g. 2/8", metavar="I/N")
    keep_prompts: bool = option(
        False, "hold the dense caches of all samples instead of one at a time"
    )
    resume: bool = option(True, "go on with what is in the folder (default)")
    overwrite: bool = option(False, "delete what is in the folder first")


@dataclass(frozen=True)
class TuneOptions:
    """Which alphas are tried where."""

    scores: Path = option(REQUIRED, "file of catekv cokv score")
    capacities: tuple[int, ...] = option(
        REQUIRED,
        "mean entries per head, the window included",
        also=("--budgets",),
        metavar="TOKENS",
    )
    alphas: tuple[int, ...] = option((), "(default: 1 5 10 15 20 30 40)", metavar="N")
    output: Path | None = option(None, "file (default: alpha.json beside the scores)")
    overwrite: bool = option(False, "replace what is there")

    def __post_init__(self) -> None:
        refuse_twice("--capacities", self.capacities)
        refuse_twice("--alphas", self.alphas)

    @property
    def file(self) -> Path:
        return self.output or self.scores.with_name(ALPHA_FILE)


@dataclass(frozen=True)
class Shown:
    """Scores to show."""

    paths: tuple[Path, ...] = option(REQUIRED, "npz, or published npy files", positional=True)
    trust_pickle: bool = option(False, "read published files, which are pickles")
    shape: str | None = option(
        None, "of published files, which do not say it", metavar="LAYERSxHEADS"
    )
    use: str = option(
        "both", "accumulators (left: as released; default: {default})", choices=ACCUMULATORS
    )
    compare: Path | None = option(None, "print the correlation with these scores", metavar="NPZ")
    picture: Path | None = option(None, "draw heat maps into this PNG or SVG file")
    output: Path | None = option(None, "write the scores as npz")


MODEL_REQUEST = Group(
    Request,
    (*MODEL, "batch_size", "chunk_size"),
    defaults={"batch_size": 32},
    helps={"batch_size": "sequences decoded together (default: {default})"},
)
SCORED, SETTINGS = Group(Scored), Group(Settings)
TUNED, SHOWN = Group(TuneOptions), Group(Shown)
