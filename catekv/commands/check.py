"""``catekv check``: does compression hurt this model? A verdict in minutes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from catekv.commands.arguments import PROGRESS
from catekv.commands.schema import Group
from catekv.evaluation.options import COUNT, MOST_SAMPLES, option
from catekv.evaluation.run.request import CHECKED_METHODS, CHECKED_TASKS, Request

#: fields of a request that mean here what they mean to an evaluation
SHARED = ("dtype", "device", "attention", "methods", "ratio", "tasks", "seed", "chat_template")


@dataclass(frozen=True)
class Check:
    """The options that an evaluation has not."""

    model: str | None = option(
        None,
        "local folder, .gguf file or hub name (default: the embedded model)",
        positional=True,
        metavar="MODEL",
    )
    quick: bool = option(
        False, "shorter prompts and answers, fewer samples: minutes, see the estimate"
    )
    length: int | None = option(
        None, "tokens of all prompts (default: 2048, with --quick 1024)", metavar="TOKENS", **COUNT
    )
    samples: int | None = option(
        None,
        "samples of every task (default: 30, with --quick 10)",
        least=1,
        most=MOST_SAMPLES,
    )
    passages: int | None = option(
        None, "passages of text (default: 12, with --quick 6)", least=1, most=MOST_SAMPLES
    )
    references: int | None = option(
        None,
        "reference samples of new masks (default: 12, with --quick 4)",
        least=1,
        most=MOST_SAMPLES,
    )
    new_masks: bool = option(False, "make head masks even where the model has some")
    output: Path | None = option(
        None, "folder of the results, in which the same command goes on (default: one in results/)"
    )


CHECK = Group(Check)
REQUEST = Group(
    Request,
    SHARED,
    defaults={"methods": CHECKED_METHODS},
    helps={"tasks": f"task names or JSONL files (default: {' '.join(CHECKED_TASKS)})"},
)
OPTIONS = (CHECK, REQUEST, PROGRESS)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if a sample failed."""
    from catekv.calibration.check import FIDELITY, SMALL, USUAL, check
    from catekv.evaluation.columns.specification import parse_methods
    from catekv.evaluation.report import report
    from catekv.evaluation.run import session

    own = CHECK.read(arguments)
    request = REQUEST.read(arguments, model=own.model)
    parse_methods(request.methods)  # refuses unknown names before a model is loaded
    given = {
        name: value
        for name in ("length", "samples", "passages", "references")
        if (value := getattr(own, name)) is not None
    }
    extent = dataclasses.replace(SMALL if own.quick else USUAL, **given)
    name = f"check-{request.model_name}{'-quick' if own.quick else ''}"
    output = own.output or session.RESULTS / name
    outcome = check(
        session.open_model(request, for_text=True),
        request,
        extent,
        output,
        quiet=arguments.quiet,
        new_masks=own.new_masks,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    report.report_on([output], output=output)
    print(outcome.sentence)
    print(
        f"Report: {output / 'report.html'}; distance to full on text: "
        f"{output / FIDELITY / 'report.html'}"
    )
    return 1 if outcome.failed else 0
