"""The model and the methods that the stages measure; tiny ones with ``--scale tiny``."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from bench.cases import OF_IDEAL, REST, SPEED_UP, Scale
from catekv import CateKVModel, HeadMask
from catekv.evaluation import tables
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import memory, shapes
from catekv.evaluation.efficiency.clock import copy_bandwidth
from catekv.evaluation.efficiency.measurement import (
    FAILED,
    MEASURED,
    TOO_LARGE,
    Measurement,
    kept_bytes,
    share_of_ideal,
    speed_up,
)
from catekv.evaluation.efficiency.render import base_of, best_of
from catekv.evaluation.efficiency.variants import KERNEL
from catekv.prefill.sizes import GB, GIB

MODEL = "llama3-8b-1m"
#: Positions that the model must have; a few more than the longest context.
_POSITIONS = 1 << 20
_TINY_DIVISOR, _TINY_SCALE = 512, 0.01
#: Rows without times whose reason is noted beside the table.
_TOLD = (FAILED, TOO_LARGE)
#: Bytes that caches may take on a CPU.
TINY_MEMORY = 80 << 20
#: Edges and budget of the methods with tiny contexts.
_TINY_OPTIONS = {
    "budget": 96, "window": 16, "init_tokens": 16, "recent_tokens": 32, "guard_tokens": 8,
}  # fmt: skip


@functools.cache
def bandwidth(device: str) -> float:
    """Bytes per second of a copy, measured once per process."""
    return copy_bandwidth(torch.device(device))


@functools.cache
def load_model(scale: Scale) -> CateKVModel:
    """Llama-3-8B shapes with random weights, made on the device, once per process."""
    model, _ = shapes.random_model(
        MODEL,
        _POSITIONS,
        scale=_TINY_SCALE if scale.tiny else None,
        dtype="float32" if scale.tiny else "bfloat16",
        device=scale.device,
    )
    return model


def tokens(scale: Scale, count: int) -> int:
    """A context length in the proportion of the scale."""
    return max(160, count // _TINY_DIVISOR) if scale.tiny else count


def catekv(scale: Scale, ratio: float, retention: float, store: str = "device") -> MethodSpec:
    """CateKV with random heads: which ones are adaptive changes no time."""
    mask = HeadMask.random(load_model(scale).shape, ratio)
    options = {"head_mask": mask, "ratio": ratio, "retention": retention, "store": store}
    form = "" if store == "device" else f" {store}"
    return MethodSpec(
        f"catekv r {ratio:g} eta {retention:g}{form}",
        "catekv",
        {**options, **(_TINY_OPTIONS if scale.tiny else {})},
    )


def rows_of(scale: Scale, measured: Sequence[Measurement]) -> list[dict[str, str]]:
    """Lines of the suite's tables."""
    base, best = base_of(measured), best_of(measured)
    sizes = memory.memory_model(load_model(scale))
    rate = bandwidth(scale.device)
    found = []
    for row in measured:
        line = {
            "tokens": str(row.length),
            "batch": str(row.batch),
            "variant": row.variant,
            "kept": tables.percent(row.kept_tokens / row.length),
        }
        if row.status != MEASURED or row.median_step is None:
            found.append({**line, "ms/step": row.status, "note": row.note})
            continue
        planned = sizes.resident_bytes(0) + kept_bytes(row, sizes)
        per_second = row.bytes_per_second or 0.0
        found.append(
            {
                **line,
                "cache GiB": tables.number(row.stored_bytes / GIB, 3),
                "resident GiB": _gib(row.resident_bytes),
                "byte model GiB": _gib(planned),
                "ms/step": tables.number(1000 * row.median_step, 3),
                "quartiles": _quartiles(row),
                "tokens/s": tables.number(row.tokens_per_second, 1),
                "GB/s": tables.number(per_second / GB, 0),
                "of copy": tables.percent(per_second / rate),
                "vs ours": _ratio(speed_up(base, row)),
                "vs best full": _ratio(speed_up(best, row)),
                "ideal": f"{row.ideal:.2f}x",
                "of ideal": tables.percent(share_of_ideal(base, row)),
                "attention ms": _milliseconds(row.attention_seconds),
                "without attention ms": _milliseconds(row.rest_seconds),
                "captured": "yes" if row.captured else "no",
                "note": row.shared_memory or "-",
            }
        )
    return found


def speed_ups(measured: Sequence[Measurement], name: str) -> dict[str, float]:
    """The method's speed-up over the fastest full attention, if both were measured."""
    method = next((row for row in measured if row.method), None)
    ratio = None if method is None else speed_up(best_of(measured), method)
    return {} if ratio is None else {f"{name}: {SPEED_UP}": ratio}


def of_ideal(measured: Sequence[Measurement], name: str) -> dict[str, float]:
    """How much of the method's speed-up over our own full cache its bytes explain."""
    method = next((row for row in measured if row.method), None)
    share = None if method is None else share_of_ideal(base_of(measured), method)
    return {} if share is None else {f"{name}: {OF_IDEAL}": share}


def memory_values(scale: Scale, measured: Sequence[Measurement], name: str) -> dict[str, float]:
    """How far what the method adds to the weights is from the byte model (CUDA only)."""
    sizes = memory.memory_model(load_model(scale))
    return {
        f"{name}: memory off the byte model": abs(
            row.resident_bytes / (sizes.resident_bytes(0) + kept_bytes(row, sizes)) - 1
        )
        for row in measured
        if row.method and row.resident_bytes is not None and row.distinct_layers is None
    }


def rest_values(scale: Scale, measured: Sequence[Measurement]) -> dict[str, float]:
    """A step without attention over reading the weights at the speed of the copy."""
    weights = memory.memory_model(load_model(scale)).step_bytes(0) / bandwidth(scale.device)
    found = [row.rest_seconds for row in measured if row.method and row.rest_seconds is not None]
    return {REST: found[0] / weights} if found else {}


def ours_failed(measured: Sequence[Measurement]) -> bool:
    """Whether a row of this project has an error; another library's is only noted."""
    return any(row.status == FAILED and (row.method or row.variant == KERNEL) for row in measured)


def notes(scale: Scale, measured: Sequence[Measurement]) -> str:
    """Errors among the rows, and which steps were not recorded although a GPU is there."""
    said = [f"{row.variant}: {row.note}" for row in measured if row.status in _TOLD]
    if not scale.tiny:
        said += [
            f"{row.variant}: not recorded, {row.reason}"
            for row in measured
            if row.status == MEASURED and not row.captured
        ]
    return "; ".join(said)


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / GIB:.3f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3f}"


def _quartiles(row: Measurement) -> str:
    pair = row.quartiles
    return "-" if pair is None else f"{1000 * pair[0]:.3f}..{1000 * pair[1]:.3f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}x"
