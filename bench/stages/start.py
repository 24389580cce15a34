"""The machine, what its memory can do, and the model."""

from __future__ import annotations

import importlib.util
import subprocess

import torch

from bench.cases import Result, Scale
from bench.workload import bandwidth, load_model
from catekv.evaluation.records import environment
from catekv.prefill.sizes import GB, GIB


def run(scale: Scale, name: str) -> Result:
    """``machine`` or ``model``."""
    return _machine(scale) if name == "machine" else _model(scale)


def _machine(scale: Scale) -> Result:
    rate = bandwidth(scale.device)
    facts = {"device": str(environment.device_description(scale.device)["name"])}
    if not scale.tiny:
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
    facts["copy, read and write"] = f"{rate / GB:.0f} GB/s"
    rows = [{"what": what, "value": value} for what, value in facts.items()]
    return Result(rows, data={"copy_bytes_per_second": rate})


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()


def _model(scale: Scale) -> Result:
    model = load_model(scale)
    shape = model.shape
    note = (
        f"{shape.layers} layers, {shape.query_heads} query heads, {shape.kv_heads} KV heads of "
        f"{shape.head_dim}, {model.dtype}"
    )
    return Result(note=note)
