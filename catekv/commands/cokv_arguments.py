"""Options of ``catekv cokv score | tune | show``."""

from __future__ import annotations

import argparse
from pathlib import Path

from catekv.calibration.cokv.coalitions import WINDOW
from catekv.calibration.cokv.game import ACCUMULATORS
from catekv.commands.arguments import add_template_argument
from catekv.commands.numbers import whole
from catekv.evaluation.run.asking import QUESTIONS
from catekv.options import MOST_SAMPLES

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


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    from catekv.commands.cli import add_model_arguments

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
    parser.add_argument(
        "--samples", type=whole(1, MOST_SAMPLES), default=DEFAULT_SAMPLES, help="(default: 20)"
    )
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
    add_template_argument(parser)
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
