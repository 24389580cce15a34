"""What could be better: the step without its graph, the step of the model's own modules, and other
launch options of the kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.cases import Result, Scale
from bench.loads import Load, launch_seconds, make_several
from bench.workload import catekv, load_model, notes, ours_failed, tokens
from catekv.evaluation.efficiency.measure import measure
from catekv.evaluation.efficiency.measurement import Measurement
from catekv.kernels import Workspace
from catekv.kernels.ragged import RaggedPrefix

if TYPE_CHECKING:
    from catekv.kernels.ragged_decode_triton import LaunchOptions

_LENGTH = 8_192
_BLOCKS, _WARPS, _STAGES, _PROGRAMS = (32, 64, 128), (4, 8), (2, 3, 4), (1, 2, 3)
_REPEATS = 5
#: How many of the best are listed.
_BEST = 5


def run(scale: Scale, name: str, what: str) -> Result:
    """``graph`` or ``sweep``."""
    return _graph(scale) if what == "graph" else _sweep(scale)


def _graph(scale: Scale) -> Result:
    model = load_model(scale)
    fused = "on" if scale.tiny else "auto"

    def steps(graph: str, fused_step: str) -> list[Measurement]:
        usual, model.fused_step = model.fused_step, fused_step
        try:
            return measure(
                model, [catekv(scale, 0.4, 1.0)], tokens(scale, _LENGTH),
                new_tokens=2 if scale.tiny else 16, repeats=2, baselines=("kernel",), graph=graph,
                breakdown=False,
            )  # fmt: skip
        finally:
            model.fused_step = usual

    eager, modules, recorded = steps("off", fused), steps("auto", "off"), steps("auto", fused)
    rows = []
    for slow, stock, fast in zip(eager, modules, recorded, strict=True):
        rows.append(
            {
                "variant": slow.variant,
                "eager ms": _milliseconds(slow),
                "modules recorded ms": _milliseconds(stock),
                "recorded ms": _milliseconds(fast),
                "of the graph": _ratio(slow, fast),
                "of fusing": _ratio(stock, fast),
                "fused": "yes" if fast.fused else "no",
                "graph MiB": f"{(fast.graph_bytes or 0) / 2**20:.1f}",
            }
        )
    all_rows = [*eager, *modules, *recorded]
    data = [row.to_dict() for row in all_rows]
    refused = None if scale.tiny else model.not_fused
    note = "; ".join(filter(None, [notes(scale, recorded), refused]))
    return Result(rows, wrong=ours_failed(all_rows), note=note, data=data)


def _milliseconds(row: Measurement) -> str:
    return "-" if row.median_step is None else f"{1000 * row.median_step:.3f}"


def _ratio(slow: Measurement, fast: Measurement) -> str:
    before, after = slow.median_step, fast.median_step
    return "-" if before is None or after is None else f"{before / after:.2f}x"


def _sweep(scale: Scale) -> Result:
    if scale.tiny:
        # launching needs a GPU; the torch path has no options
        return Result(note="nothing to sweep without a GPU")
    from catekv.kernels.ragged_decode_triton import LaunchOptions, launch_options

    loads = [
        Load("128K, batch 1", (131_072,) * 8),
        Load("128K r 0.4", (131_072,) * 3 + (2_080,) * 5),
        Load("40K, batch 16", ((11_264,) * 2 + (2_048,) * 6) * 16),
    ]
    inputs = [make_several(scale, load) for load in loads]
    rule = launch_options(128, 2, 16)
    tried: dict[LaunchOptions, list[float]] = {}
    failed = []
    shapes = itertools.product(_BLOCKS, _WARPS, _STAGES, _PROGRAMS)
    # the rule first, so that it is there whatever follows
    for options in dict.fromkeys([rule, *(LaunchOptions(*shape) for shape in shapes)]):
        try:
            decode = _decode_with(options)
            tried[options] = [launch_seconds(scale, decode, each, _REPEATS) for each in inputs]
        except Exception as error:
            # too much shared memory, say: that is a finding; a lost device ends the process later
            failed.append(f"{options}: {' '.join(str(error).split())[:120]}")
            torch.cuda.synchronize()
    data = {"seconds": {str(key): times for key, times in tried.items()}, "failed": failed}
    note = f"{len(tried)} tried, {len(failed)} do not launch"
    return Result(_ranked(loads, tried, rule), note=note, data=data)


def _decode_with(options: LaunchOptions) -> Callable[..., Tensor]:
    from catekv.kernels.ragged_decode_triton import ragged_decode_triton

    workspace = Workspace()

    def decode(
        queries: Tensor, prefix: RaggedPrefix, keys: Tensor, values: Tensor, scaling: float,
        used: Tensor,
    ) -> Tensor:  # fmt: skip
        return ragged_decode_triton(
            queries, prefix, keys, values, scaling, tail_length=used, workspace=workspace,
            options=options,
        )  # fmt: skip

    return decode


def _ranked(
    loads: list[Load], tried: dict[LaunchOptions, list[float]], rule: LaunchOptions
) -> list[dict[str, str]]:
    """The best options by their mean distance from the best of every load, and the rule's."""
    fastest = [min(times) for times in zip(*tried.values(), strict=True)]

    def cost(options: LaunchOptions) -> float:
        pairs = zip(tried[options], fastest, strict=True)
        return sum(time / best for time, best in pairs) / len(fastest)

    rows = []
    for options in [*sorted(tried, key=cost)[:_BEST], *([rule] if rule in tried else [])]:
        row = {"options": str(options).removeprefix("LaunchOptions")}
        times = zip(loads, tried[options], strict=True)
        row |= {load.name: f"{1e6 * time:.1f} us" for load, time in times}
        rows.append({**row, "over the best": f"{cost(options):.3f}"})
    return rows
