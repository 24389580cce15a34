"""Reading real prompts: time, peak memory against the plan, and what scoring and packing cost."""

from __future__ import annotations

import statistics
import time

import torch

from bench.cases import Result, Scale
from bench.workload import catekv, load_model, tokens
from catekv.decode.generation import synchronize
from catekv.evaluation.efficiency import memory
from catekv.kernels.packing import pack
from catekv.methods.base import Method
from catekv.prefill.peak import peak_prefill_bytes
from catekv.prefill.sizes import GIB, sizes_of_model

RATIO, RETENTION = 0.4, 1.0
CHUNK = 8192
RUNS = 5


def _method(scale: Scale) -> Method:
    return catekv(scale, RATIO, RETENTION).create()


def _chunk(scale: Scale) -> int:
    return 64 if scale.tiny else CHUNK


def _prompt(scale: Scale, length: int) -> torch.Tensor:
    model = load_model(scale)
    vocabulary = int(model.model.get_input_embeddings().weight.shape[0])
    return torch.randint(0, vocabulary, (1, length)).to(model.device)


def compress_seconds(scale: Scale, length: int) -> float:
    """Scoring and packing of all layers: the median of one layer on random keys, times layers."""
    model, method = load_model(scale), _method(scale)
    shape, device = model.shape, model.device

    def draw(heads: int, count: int) -> torch.Tensor:
        extents = (1, heads, count, shape.head_dim)
        return torch.randn(extents, device=device, dtype=torch.float32).to(model.dtype)

    queries = draw(shape.query_heads, method.needs.window)
    keys, values = draw(shape.kv_heads, length), draw(shape.kv_heads, length)
    times = []
    for _ in range(RUNS + 1):
        synchronize(device)
        clock = time.perf_counter()
        selection = method.select(queries, keys, values, 0, shape.layers)
        assert selection.keep is not None
        pack(keys, values, selection.keep)
        synchronize(device)
        times.append(time.perf_counter() - clock)
    return statistics.median(times[1:]) * shape.layers


@torch.no_grad()
def run(scale: Scale, name: str, length: int) -> Result:
    """One prompt, after a short one with which kernels are compiled and chosen."""
    length = tokens(scale, length)
    model, method = load_model(scale), _method(scale)
    model.prefill(_prompt(scale, _chunk(scale) + 300), _chunk(scale), method)
    ids = _prompt(scale, length)
    memory.free()
    peak = memory.Peak(model.device)
    clock = time.perf_counter()
    context = model.prefill(ids, chunk_size=_chunk(scale), method=method)
    synchronize(model.device)
    whole = time.perf_counter() - clock
    highest = peak.highest()
    stored = context.stored_bytes()
    del context
    memory.free()
    compress = compress_seconds(scale, length)
    memory.free()
    planned = _planned_peak(scale, length)
    row = {
        "tokens": str(length),
        "prefill s": f"{whole:.2f}",
        "tokens/s": f"{length / whole:.0f}",
        "scoring and packing s": f"{compress:.3f}",
        "share": f"{100 * compress / whole:.2f}%",
        "cache GiB": f"{stored / GIB:.3f}",
        "peak GiB": "-" if highest is None else f"{highest / GIB:.3f}",
        "planned GiB": f"{planned / GIB:.3f}",
    }
    goal = f"prefill {name}: "
    values = {goal + "scoring and packing over the whole": compress / whole}
    if highest is not None:
        values[goal + "peak off the plan"] = abs(highest / planned - 1)
    data = {"seconds": whole, "compress": compress, "peak": highest, "planned": planned}
    return Result([row], values, data=data)


def _planned_peak(scale: Scale, length: int) -> float:
    """What ``catekv plan`` says, in bytes."""
    model = load_model(scale)
    sizes = sizes_of_model(model.model)
    return peak_prefill_bytes(
        sizes, _method(scale), length, chunk_size=_chunk(scale), device=scale.device
    )
