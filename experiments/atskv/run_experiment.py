"""Memory, times and quality of KV cache methods at several context sizes, with the published flags.

    python experiments/atskv/run_experiment.py --model_name embedded --context_sizes 512 1024 2048

docs/atskv.md explains flags and files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.cli import Parser, run_safely
from experiments.atskv import experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags and run; returns the exit code."""
    parser = Parser(prog="run_experiment.py", description=(__doc__ or "").partition("\n")[0])
    experiment.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_safely(lambda: experiment.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
