"""Reading real prompts: time, peak memory against the plan, and what scoring and packing cost."""

from __future__ import annotations

import functools
import statistics
import time

import torch

from bench.cases import Case, Result, Stage
from bench.records import Goal
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


def cases(stage: Stage) -> list[Case]:
    """128K first: two goals hang on it."""
    return [
        Case("warm-up", lambda: _warm_up(stage), 30.0),
        Case("128K", functools.partial(_prefill, stage, 131_072, True), 25.0),
        Case("32K", functools.partial(_prefill, stage, 32_768, False), 5.0),
        Case("256K", functools.partial(_prefill, stage, 262_144, False), 65.0),
    ]


def _method(stage: Stage) -> Method:
    return catekv(stage, RATIO, RETENTION).create()


def _chunk(stage: Stage) -> int:
    return 64 if stage.tiny else CHUNK


def _prompt(stage: Stage, length: int) -> torch.Tensor:
    model = load_model(stage)
    vocabulary = int(model.model.get_input_embeddings().weight.shape[0])
    return torch.randint(0, vocabulary, (1, length)).to(model.device)


def _warm_up(stage: Stage) -> Result:
    """Kernels are compiled and chosen before anything is timed."""
    length = _chunk(stage) + 300
    load_model(stage).prefill(_prompt(stage, length), _chunk(stage), _method(stage))
    return Result(note=f"{length} tokens")


def compress_seconds(stage: Stage, length: int) -> float:
    """Scoring and packing of all layers: the median of one layer on random keys, times layers."""
    model, method = load_model(stage), _method(stage)
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
def _prefill(stage: Stage, length: int, judged: bool) -> Result:
    length = tokens(stage, length)
    model, method = load_model(stage), _method(stage)
    ids = _prompt(stage, length)
    memory.free()
    peak = memory.Peak(model.device)
    clock = time.perf_counter()
    context = model.prefill(ids, chunk_size=_chunk(stage), method=method)
    synchronize(model.device)
    whole = time.perf_counter() - clock
    highest = peak.highest()
    stored = context.stored_bytes()
    del context
    memory.free()
    compress = compress_seconds(stage, length)
    memory.free()
    planned = _planned_peak(stage, length)
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
    goals = []
    if judged:
        goals.append(Goal("scoring and packing over prefill", compress / whole, 0.03, False))
    if highest is not None:
        apart = abs(highest / planned - 1)
        goals.append(Goal(f"{length} tokens: peak off the plan", apart, 0.05, at_least=False))
    data = {"seconds": whole, "compress": compress, "peak": highest, "planned": planned}
    return Result([row], goals, data=data)


def _planned_peak(stage: Stage, length: int) -> float:
    """What ``catekv plan`` says, in bytes."""
    model = load_model(stage)
    sizes = sizes_of_model(model.model)
    return peak_prefill_bytes(
        sizes, _method(stage), length, chunk_size=_chunk(stage), device=stage.device
    )
