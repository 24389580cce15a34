"""Score the heads for several tasks on their validation samples, loading the model once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.scoring import Settings, score
from catekv.calibration.cokv.split import find_split
from catekv.commands.cokv_arguments import Scored
from catekv.commands.schema import Group, add_options
from catekv.files import read_fields, write_atomically
from experiments.cokv.predictions import short_name
from experiments.cokv.shared import main, model_identity, model_name, open_model, parser

#: When draws stop.
STOPPING = Group(Settings, ("check_every", "max_draws", "tolerance"))


def score_tasks(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)
    settings = STOPPING.read(arguments, seed=arguments.seed, question=arguments.question)
    for task in arguments.tasks:
        split = find_split(arguments.split, task)
        samples = split.build("validation", model.tokenizer)
        clock = time.perf_counter()
        outcome = score(
            model,
            samples,
            arguments.output / short_name(task),
            settings,
            batch_size=arguments.batch_size,
            keep_prompts=arguments.keep_prompts,
            origin={
                "model": model_name(arguments),
                "model_hash": model_identity(arguments, model),
                "samples": {
                    **dataclasses.asdict(split.samples),
                    "positions": list(split.validation),
                },
            },
        )
        seconds = time.perf_counter() - clock
        assert outcome.path is not None
        recipe = ScoreFile.load(outcome.path).recipe
        print(
            f"{task}: {recipe['draws']} draws per slice and run, MAE {recipe['mae']:.4f} (stop "
            f"below {recipe['tolerance']:.4f}), {seconds:.0f} s"
        )
        _note_time(arguments.output / short_name(task) / "seconds.json", seconds)
    return 0


def _note_time(path: Path, seconds: float) -> None:
    """Keep the time of the call that did the work, not of one that found it done."""
    held = read_fields(path, "remove it", seconds=(int, float))["seconds"] if path.exists() else 0.0
    write_atomically(path, json.dumps({"seconds": round(max(held, seconds), 1)}) + "\n")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--split", type=Path, required=True)
    add_options(options, (STOPPING, Group(Scored, ("keep_prompts",))))
    main(options, score_tasks)
