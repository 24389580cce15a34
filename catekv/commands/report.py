"""The command ``catekv report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv report``."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directory, folder of runs (of a sweep), folder with efficiency.json, folder of "
        "head masks, results of kvpress, or file of needle results",
    )
    parser.add_argument(
        "--output", type=Path, help="folder of report.html and report.md (default: the first RUN)"
    )
    parser.add_argument(
        "--rescore", action="store_true", help="score the stored predictions again first"
    )
    parser.add_argument(
        "--official", action="store_true", help="also write predictions in RULER's own forms"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--colours",
        default="blue-yellow",
        metavar="SCALE",
        help="of heat maps: blue-yellow (default, for every kind of colour vision) or "
        "red-yellow-green",
    )
    parser.add_argument(
        "--trained-length",
        type=int,
        metavar="TOKENS",
        help="longest texts the model was trained on: a line in the needle pictures",
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if something was left out."""
    from catekv.evaluation.report import report
    from catekv.evaluation.report.build import Options
    from catekv.evaluation.report.colours import check_scale

    options = Options(check_scale(arguments.colours), arguments.trained_length)
    written = report.report_on(
        arguments.paths, output=arguments.output, rescore=arguments.rescore, options=options
    )
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
