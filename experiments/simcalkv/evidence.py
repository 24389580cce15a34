"""The measurements behind docs/results/simcalkv.md, on the embedded and on random models.

python experiments/simcalkv/evidence.py step --samples 4 --output_dir out
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.cli import Parser, run_safely
from experiments.simcalkv import measure_evidence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags and run; returns the exit code."""
    parser = Parser(prog="evidence.py", description=(__doc__ or "").partition("\n")[0])
    measure_evidence.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_safely(lambda: measure_evidence.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
