"""The decode kernel alone: bytes per second on a cold cache, against a copy in the same run."""

from __future__ import annotations

import torch

from bench.cases import RIVAL, SHARE, Result, Scale
from bench.loads import Load, rival_seconds, seconds
from bench.workload import bandwidth
from catekv.evaluation import tables
from catekv.evaluation.efficiency import dense
from catekv.prefill.sizes import GB


def run(scale: Scale, name: str, lengths: tuple[int, ...]) -> Result:
    """One load; where all heads are full also FlashAttention, if it is there."""
    if scale.tiny:
        lengths = tuple(max(1, length // 1024) for length in lengths)
    load = Load(name, lengths, dtype=torch.float32 if scale.tiny else torch.bfloat16)
    time, repeats = seconds(scale, load)
    rate, copy = load.nbytes / time, bandwidth(scale.device)
    row = {
        "load": name,
        "rows": str(len(lengths)),
        "MiB": f"{load.nbytes / 2**20:.0f}",
        "us": f"{1e6 * time:.1f}",
        "GB/s": f"{rate / GB:.0f}",
        "of copy": tables.percent(rate / copy),
    }
    result = Result([row], {f"{name}: {SHARE}": rate / copy})
    result.data = {"seconds": time, "repeats": repeats, "copy": copy}
    if name.endswith("all full"):
        library = dense.LIBRARIES["flash"]
        absent = library.absent(torch.device(scale.device))
        if absent:
            result.reasons[RIVAL] = absent
        else:
            other = rival_seconds(scale, load, library)
            result.values[RIVAL] = other / time
            row["FlashAttention us"] = f"{1e6 * other:.1f}"
    return result
