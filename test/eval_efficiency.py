"""Latency, memory and throughput with the flags of the published script; see `catekv efficiency`.

    python test/eval_efficiency.py --datalen 4096 --method CateKV
    python test/eval_efficiency.py --model_name llama3-8b-1m --datalen 512000 --method CateKV
    python test/eval_efficiency.py --model_name llama3-8b-1m --datalen 512000 --scale 0.1

The second line needs a GPU; the third runs a smaller model of the same proportions anywhere. Full
attention and the method are measured in the same run with equal token counts.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from catekv.commands.cli import Parser, run_safely
from catekv.commands.published_flags import EFFICIENCY, efficiency_asked
from catekv.commands.schema import add_options
from catekv.commands.words import explained


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the published flags, measure, print the table; returns the exit code."""
    parser = Parser(prog="eval_efficiency.py", description=(__doc__ or "").partition("\n")[0])
    add_options(parser, EFFICIENCY)
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words)

    def action() -> int:
        from catekv.commands.efficiency_run import run

        measuring, request = efficiency_asked(parsed)
        return run(measuring, request, shlex.join(["test/eval_efficiency.py", *words]))

    return run_safely(lambda: explained(action, parser))


if __name__ == "__main__":
    sys.exit(main())
