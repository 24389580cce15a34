"""Launch options of the decode kernel, tried one by one, so that its rule can be corrected."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, Result, Stage, bandwidth
from bench.loads import Load, launch_seconds, make_several
from catekv.evaluation import tables
from catekv.kernels import Workspace
from catekv.kernels.ragged import RaggedPrefix
from catekv.prefill.sizes import GB

BLOCKS, WARPS, STAGES, PROGRAMS = (32, 64, 128), (4, 8), (2, 3, 4), (1, 2, 3, 4)
REPEATS = 7
#: How many of the best are printed.
BEST = 5


def cases(stage: Stage) -> list[Case]:
    """Half precision, the head dimension of most models first."""
    if stage.tiny:
        # launching needs a GPU; the torch path has no options
        return [Case("launch options", lambda: Result(note="nothing to sweep without a GPU"))]
    found = []
    for head_dim, kv_heads, group in ((128, 8, 4), (96, 32, 1), (64, 8, 4), (256, 4, 4)):
        run = functools.partial(_sweep, stage, head_dim, kv_heads, group)
        found.append(Case(f"d{head_dim}", run, 45.0))
    return found


def _loads(head_dim: int, kv_heads: int, group: int) -> list[Load]:
    k = 1024
    rows = {
        "16K, batch 1": (16 * k,) * kv_heads,
        "128K, batch 1": (128 * k,) * kv_heads,
        "40K, batch 16, ragged": ((11 * k,) * 2 + (2 * k,) * (kv_heads - 2)) * 16,
    }
    return [Load(name, lengths, kv_heads, group, head_dim) for name, lengths in rows.items()]


def _sweep(stage: Stage, head_dim: int, kv_heads: int, group: int) -> Result:
    from catekv.kernels.ragged_decode_triton import (
        LaunchOptions,
        launch_options,
        ragged_decode_triton,
    )

    loads = _loads(head_dim, kv_heads, group)
    inputs = [make_several(stage, load) for load in loads]
    rule = launch_options(head_dim, 2, 16)
    rule_key = (rule.block, rule.num_warps, rule.num_stages, rule.programs_per_processor)
    tried: dict[tuple[int, ...], list[float]] = {}
    failed: dict[tuple[int, ...], str] = {}
    workspace = Workspace()
    for key in sorted({rule_key, *itertools.product(BLOCKS, WARPS, STAGES, PROGRAMS)}):
        block, warps, stages, programs = key
        if (block, warps, stages) in failed:
            continue
        options = LaunchOptions(block, warps, stages, programs)

        def decode(
            queries: Tensor,
            prefix: RaggedPrefix,
            tail_keys: Tensor,
            tail_values: Tensor,
            scaling: float,
            used: Tensor,
            options: Any = options,
        ) -> Tensor:
            return ragged_decode_triton(
                queries, prefix, tail_keys, tail_values, scaling, tail_length=used,
                workspace=workspace, options=options,
            )  # fmt: skip

        try:
            tried[key] = [launch_seconds(stage, decode, given, REPEATS) for given in inputs]
        except Exception as error:
            # too much shared memory, say: that is a finding; a lost device ends the process later
            failed[block, warps, stages] = " ".join(str(error).split())[:120]
            torch.cuda.synchronize()
    return Result(
        _best(loads, tried, rule_key, bandwidth(stage.device)),
        note=f"{len(tried)} tried, {len(failed)} do not launch",
        data={
            "seconds": {",".join(map(str, key)): times for key, times in tried.items()},
            "failed": {",".join(map(str, key)): reason for key, reason in failed.items()},
            "rule": rule_key,
        },
    )


def _best(
    loads: list[Load],
    tried: dict[tuple[int, ...], list[float]],
    rule: tuple[int, ...],
    copy: float,
) -> list[dict[str, str]]:
    """The best options for every load and for all together, and the rule's."""
    columns: list[tuple[str, int | None]] = [(load.name, i) for i, load in enumerate(loads)]
    columns.append(("all loads", None))
    fastest = [min(times[i] for times in tried.values()) for i in range(len(loads))]
    rows = []
    for name, index in columns:

        def cost(key: tuple[int, ...], index: int | None = index) -> float:
            if index is not None:
                return tried[key][index]
            # how far from the best, on average over the loads
            return sum(t / best for t, best in zip(tried[key], fastest, strict=True)) / len(fastest)

        ranked = sorted(tried, key=cost)
        for place, key in enumerate([*ranked[:BEST], *([rule] if rule in tried else [])]):
            block, warps, stages, programs = key
            row = {
                "head_dim": str(loads[0].head_dim),
                "load": name,
                "place": "rule" if place == BEST else str(place + 1),
                "block": str(block),
                "warps": str(warps),
                "stages": str(stages),
                "programs/SM": str(programs),
            }
            if index is not None:
                rate = loads[index].nbytes / tried[key][index]
                row |= {
                    "us": f"{1e6 * tried[key][index]:.1f}",
                    "GB/s": f"{rate / GB:.0f}",
                    "of copy": tables.percent(rate / copy),
                }
            row["over the best"] = f"{cost(key) / cost(ranked[0]):.3f}"
            rows.append(row)
    return rows
