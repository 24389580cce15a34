"""Split tasks into validation samples (scores, alpha) and test samples (results), seeded.

Splits that the file has already stay as they are; one of other samples is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.calibration.cokv.split import (
    VALIDATION_SHARE,
    SampleSet,
    Split,
    read_splits,
    write_splits,
)
from catekv.commands.cli import Parser
from catekv.commands.cokv_arguments import Scored
from catekv.commands.numbers import token_count
from catekv.commands.schema import Group
from catekv.errors import UserError
from experiments.cokv.shared import main, model_name, parser

SAMPLES = Group(
    Scored,
    ("samples", "task_options"),
    defaults={"samples": 200},
    helps={"samples": "per task (default: {default})"},
)


def _plain(samples: SampleSet) -> Any:
    """As it is after it was written and read."""
    return json.loads(json.dumps(dataclasses.asdict(samples)))


def split(arguments: argparse.Namespace) -> int:
    from catekv.commands.ruler_files import load_tokenizer
    from catekv.evaluation.run.request import Request

    tokenizer = load_tokenizer(Request(model=arguments.model).model_path)
    options = SAMPLES.values(arguments)["task_options"]
    held = read_splits(arguments.output) if arguments.output.exists() else {}
    splits = dict(held)
    for task in arguments.tasks:
        samples = SampleSet(task, arguments.length, arguments.samples, arguments.seed, options)
        if task in held:
            if (_plain(held[task].samples), held[task].seed) != (_plain(samples), arguments.seed):
                raise UserError(
                    f"{arguments.output} holds a split of {task} made of other samples (length, "
                    "number, options or seed); use another folder for other settings"
                )
            continue
        made = Split.make(samples, samples.build(tokenizer), arguments.share, arguments.seed)
        splits[task] = made
        print(f"{task}: {len(made.validation)} validation, {len(made.test)} test samples")
    print(f"Split of {model_name(arguments)}: {write_splits(arguments.output, splits.values())}")
    return 0


def arguments_parser() -> Parser:
    options = parser(__doc__)
    options.add_argument(
        "--length", type=token_count, required=True, help="prompt tokens (a limit)"
    )
    SAMPLES.add(options)
    options.add_argument("--share", type=float, default=VALIDATION_SHARE, help="(default: 0.15)")
    return options


if __name__ == "__main__":
    main(arguments_parser(), split)
