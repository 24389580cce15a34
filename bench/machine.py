"""Prints what the manifest says of the machine, as JSON; exit code 2 without a usable GPU.

A process of its own, so that the suite itself never holds a CUDA context while stages measure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def describe(device: str) -> dict[str, Any]:
    """Versions, commit and device."""
    from catekv.evaluation.records import environment

    return {
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "device": environment.device_description(device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """``cuda`` or ``cpu`` is the only argument."""
    import torch

    (device,) = sys.argv[1:] if arguments is None else arguments
    if device == "cuda" and not torch.cuda.is_available():
        return 2
    print(json.dumps(describe(device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
