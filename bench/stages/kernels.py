"""The decode kernel alone: bytes per second on a cold cache, against a copy in the same run."""

from __future__ import annotations

import functools

import torch

from bench.cases import Case, Result, Stage, bandwidth
from bench.loads import Load, seconds
from bench.records import Goal
from catekv.evaluation import tables
from catekv.prefill.sizes import GB


def cases(stage: Stage) -> list[Case]:
    """Goals first, then lengths, mixtures, types and head dimensions."""
    half = torch.float32 if stage.tiny else torch.bfloat16
    k = 1 if stage.tiny else 128
    loads = [
        Load("128K, batch 1", (1024 * k,) * 8, dtype=half, goal=0.70),
        Load("128K, batch 8", (1024 * k,) * 64, dtype=half, goal=0.85),
        Load("32K, batch 1", (256 * k,) * 8, dtype=half),
        Load("8K, batch 1", (64 * k,) * 8, dtype=half),
        Load("512K, batch 1", (4096 * k,) * 8, dtype=half),
        Load("500K beside nine of 2K", (4000 * k, *(16 * k,) * 9), 10, dtype=half),
        Load("three of 512K beside five of 2K", (4096 * k,) * 3 + (16 * k,) * 5, dtype=half),
        Load("batch 64 of catekv at 40K", ((88 * k,) * 2 + (16 * k,) * 6) * 64, dtype=half),
        Load("128K, fp16", (1024 * k,) * 8, dtype=torch.float32 if stage.tiny else torch.float16),
        Load("128K, d64", (1024 * k,) * 16, 16, head_dim=64, dtype=half),
        Load("128K, d96, no groups", (1024 * k,) * 32, 32, group=1, head_dim=96, dtype=half),
        Load("128K, d128, groups of 8", (1024 * k,) * 4, 4, group=8, dtype=half),
        Load("128K, d128, groups of 7", (1024 * k,) * 4, 4, group=7, dtype=half),
        Load("128K, d256", (1024 * k,) * 4, 4, head_dim=256, dtype=half),
    ]
    return [Case(load.name, functools.partial(_measure, stage, load), 4.0) for load in loads]


def _measure(stage: Stage, load: Load) -> Result:
    time, repeats = seconds(stage, load)
    rate, copy = load.nbytes / time, bandwidth(stage.device)
    row = {
        "load": load.name,
        "rows": str(len(load.lengths)),
        "type": str(load.dtype).removeprefix("torch."),
        "MiB": f"{load.nbytes / 2**20:.0f}",
        "us": f"{1e6 * time:.1f}",
        "GB/s": f"{rate / GB:.0f}",
        "of copy": tables.percent(rate / copy),
    }
    goals = []
    if load.goal is not None:
        goals.append(Goal(f"{load.name}: share of the copy bandwidth", rate / copy, load.goal))
    return Result([row], goals, data={"seconds": time, "repeats": repeats, "copy": copy})
