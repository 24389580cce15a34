"""Scores of answers against the removed share, as a table and pictures.

    python experiments/simcalkv/sweep.py --model_name ckpt/embedded --dataset cnn_dailymail \\
        --source built-in --split "test[:8]" --calibration all --output_dir out

docs/simcalkv.md explains flags and files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.cli import Parser, run_safely
from experiments.simcalkv import sweep_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags and run; returns the exit code."""
    parser = Parser(prog="sweep.py", description=(__doc__ or "").partition("\n")[0])
    sweep_command.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_safely(lambda: sweep_command.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
