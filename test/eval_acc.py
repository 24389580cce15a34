"""Accuracy with the flags of the published script; `catekv evaluate` offers more.

    python test/eval_acc.py --method CateKV --dataset_name ruler/vt,ruler/niah_multikey_1 \\
        --cv_threshold 0.4 --full_fraction 1.0 --num_samples 8

Without --model_name the embedded model runs with the masks that come with it. A compressed method
is always measured beside full attention.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from catekv.commands.cli import Parser, run_safely
from catekv.commands.published_flags import ACCURACY, accuracy_request
from catekv.commands.schema import add_options
from catekv.commands.words import explained


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the published flags, run, print the table; returns the exit code."""
    parser = Parser(prog="eval_acc.py", description=(__doc__ or "").partition("\n")[0])
    add_options(parser, ACCURACY)
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words)

    def action() -> int:
        from catekv.evaluation.run.session import run

        return run(accuracy_request(parsed), command=shlex.join(["test/eval_acc.py", *words]))

    return run_safely(lambda: explained(action, parser))


if __name__ == "__main__":
    sys.exit(main())
