"""Answers, memory and times with and without a compressed cache, with the published flags.

    python experiments/simcalkv/llama_eval.py --model_name ckpt/embedded --dataset cnn_dailymail \\
        --split "test[:8]" --compress_ratio 0.4 --kv_method SimCalKV --output_dir out

Any causal language model, not only Llama. docs/simcalkv.md explains flags and files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.cli import Parser, run_safely
from experiments.simcalkv import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the flags and run; returns the exit code."""
    parser = Parser(prog="llama_eval.py", description=(__doc__ or "").partition("\n")[0])
    compare.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return run_safely(lambda: compare.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
