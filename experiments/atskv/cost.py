"""What relevance costs beside prefill and decode step, in processor time.

OMP_NUM_THREADS=1 python experiments/atskv/cost.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.cli import Parser, run_safely
from experiments.atskv import relevance_cost


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags and run; returns the exit code."""
    parser = Parser(prog="cost.py", description=(__doc__ or "").partition("\n")[0])
    relevance_cost.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_safely(lambda: relevance_cost.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
