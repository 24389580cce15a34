"""What the machine is and what its memory can do."""

from __future__ import annotations

import importlib.util
import subprocess

from bench.cases import Case, Result, Stage, bandwidth
from catekv.evaluation.records import environment
from catekv.prefill.sizes import GB, GIB


def cases(stage: Stage) -> list[Case]:
    """Versions, device, copy bandwidth."""
    return [
        Case("machine", lambda: _machine(stage)),
        Case("bandwidth", lambda: _bandwidth(stage), 2.0),
    ]


def _machine(stage: Stage) -> Result:
    import torch

    device = environment.device_description(stage.device)
    facts = {**environment.versions(), "commit": environment.git_commit() or "unknown"}
    facts["device"] = str(device["name"])
    if stage.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["memory"] = f"{properties.total_memory / GIB:.1f} GiB"
        facts["multiprocessors"] = str(properties.multi_processor_count)
        facts["L2"] = f"{properties.L2_cache_size / 2**20:.0f} MiB"
        facts["compute capability"] = f"{properties.major}.{properties.minor}"
        facts["CUDA"] = str(torch.version.cuda)
        facts["driver"] = _driver()
    for package in ("flash_attn", "flash_attn_interface", "flashinfer"):
        installed = importlib.util.find_spec(package) is not None
        facts[package] = "installed" if installed else "not installed"
    rows = [{"what": name, "value": value} for name, value in facts.items()]
    return Result(rows, data={**facts, **device})


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()


def _bandwidth(stage: Stage) -> Result:
    rate = bandwidth(stage.device)
    return Result(
        [{"what": "copy, read and write", "value": f"{rate / GB:.0f} GB/s"}],
        data={"copy_bytes_per_second": rate},
    )
