"""The command ``catekv report``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.options import COUNT, REQUIRED, option


@dataclass(frozen=True)
class Reported:
    """What is reported on, and how."""

    paths: tuple[Path, ...] = option(
        REQUIRED,
        "run directory, folder of runs (of a sweep), folder with efficiency.json, folder of head "
        "masks, results of kvpress, or file of needle results",
        positional=True,
        metavar="RUN",
    )
    output: Path | None = option(
        None, "folder of report.html and report.md (default: the first RUN)"
    )
    rescore: bool = option(False, "score the stored predictions again first")
    official: bool = option(False, "also write predictions in RULER's own forms")
    markdown: bool = option(False, "print Markdown")
    colours: str = option(
        "blue-yellow",
        "of heat maps: blue-yellow (default, for every kind of colour vision) or red-yellow-green",
        metavar="SCALE",
    )
    trained_length: int | None = option(
        None,
        "longest texts the model was trained on: a line in the needle pictures",
        metavar="TOKENS",
        **COUNT,
    )


OPTIONS = (Group(Reported),)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if something was left out."""
    from catekv.evaluation.report import report
    from catekv.evaluation.report.build import Options
    from catekv.evaluation.report.colours import check_scale

    options = Options(check_scale(arguments.colours), arguments.trained_length)
    written = report.report_on(
        arguments.paths, output=arguments.output, rescore=arguments.rescore, options=options
    )
    if arguments.official and not written.groups:
        raise UserError("there is no run whose predictions could be written; leave out --official")
    for group in written.groups:
        if len(written.groups) > 1:
            print(f"{group.title}\n")
        print(report.render(group.summary, markdown=arguments.markdown))
        if arguments.official:
            for run in group.runs:
                print("\n".join(map(str, report.export_official(run.path))))
    for problem in written.problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"Report: {', '.join(map(str, written.files))}", file=sys.stderr)
    return 1 if written.problems else 0
