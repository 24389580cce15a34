"""Split tasks into validation samples (scores, alpha) and test samples (results), seeded."""

from __future__ import annotations

import argparse

from shared import main, model_name, parser

from catekv.cli import options_from
from catekv.cokv.split import VALIDATION_SHARE, SampleSet, Split, write_splits


def split(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.session import Request, model_path
    from catekv.tasks.preparing import load_tokenizer

    tokenizer = load_tokenizer(model_path(Request(model=arguments.model)))
    options = options_from("--task-option", arguments.task_option)
    splits = []
    for task in arguments.tasks:
        samples = SampleSet(task, arguments.length, arguments.samples, arguments.seed, options)
        built = samples.build(tokenizer)
        splits.append(Split.make(samples, built, arguments.share, arguments.seed))
        made = splits[-1]
        print(f"{task}: {len(made.validation)} validation, {len(made.test)} test samples")
    print(f"Split of {model_name(arguments)}: {write_splits(arguments.output, splits)}")
    return 0


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--length", type=int, required=True, help="prompt tokens (a limit)")
    options.add_argument("--samples", type=int, default=200, help="per task (default: 200)")
    options.add_argument("--share", type=float, default=VALIDATION_SHARE, help="(default: 0.15)")
    options.add_argument("--task-option", action="append", default=[], metavar="NAME=VALUE")
    main(options, split)
