"""Check ATSKV's components one by one: PASS or FAIL each, exit code 0 or 1.

python experiments/atskv/run_test.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.cli import Parser, run_safely
from experiments.atskv import selftest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; returns the exit code."""
    parser = Parser(prog="run_test.py", description=(__doc__ or "").partition("\n")[0])
    selftest.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_safely(lambda: selftest.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
