"""The model and the methods that the stages measure; tiny ones with ``--scale tiny``."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from bench.cases import Stage, bandwidth
from bench.records import Goal
from catekv import CateKVModel, HeadMask
from catekv.evaluation import tables
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import memory, shapes
from catekv.evaluation.efficiency.measurement import (
    FAILED,
    MEASURED,
    Measurement,
    share_of_ideal,
    speed_up,
)
from catekv.evaluation.efficiency.render import base_of, best_of
from catekv.prefill.sizes import GB, GIB

MODEL = "llama3-8b-1m"
#: Positions that the model must have; a few more than the longest context.
_POSITIONS = 1 << 20
_TINY_DIVISOR, _TINY_SCALE = 512, 0.01
#: Edges and budget of the methods with tiny contexts.
_TINY_OPTIONS = {
    "budget": 96, "window": 16, "init_tokens": 16, "recent_tokens": 32, "guard_tokens": 8,
}  # fmt: skip


@functools.cache
def load_model(stage: Stage) -> CateKVModel:
    """Llama-3-8B shapes with random weights, made on the device, once per process."""
    scale = _TINY_SCALE if stage.tiny else None
    dtype = "float32" if stage.tiny else "bfloat16"
    model, _ = shapes.random_model(MODEL, _POSITIONS, scale=scale, dtype=dtype, device=stage.device)
    return model


def tokens(stage: Stage, count: int) -> int:
    """A context length in the proportion of the stage."""
    return max(160, count // _TINY_DIVISOR) if stage.tiny else count


def catekv(stage: Stage, ratio: float, retention: float) -> MethodSpec:
    """CateKV with random heads: which ones are adaptive changes no time."""
    mask = HeadMask.random(load_model(stage).shape, ratio)
    options = {"head_mask": mask, "ratio": ratio, "retention": retention}
    return MethodSpec(
        f"catekv r {ratio:g} eta {retention:g}",
        "catekv",
        {**options, **(_TINY_OPTIONS if stage.tiny else {})},
    )


def rows_of(stage: Stage, measured: Sequence[Measurement]) -> list[dict[str, str]]:
    """Lines of the suite's tables."""
    base, best = base_of(measured), best_of(measured)
    sizes = memory.memory_model(load_model(stage))
    rate = bandwidth(stage.device)
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
        planned = sizes.resident_bytes(row.kept_tokens, row.batch)
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
            }
        )
    return found


def speed_goal(name: str, measured: Sequence[Measurement], bound: float) -> list[Goal]:
    """The method's speed-up over full attention by our kernel, if both were measured."""
    method = next((row for row in measured if row.method), None)
    ratio = None if method is None else speed_up(base_of(measured), method)
    return [] if ratio is None else [Goal(f"{name}: speed-up over full", ratio, bound)]


def memory_goal(stage: Stage, name: str, measured: Sequence[Measurement]) -> list[Goal]:
    """How far the allocator is from the byte model, for the method (CUDA only)."""
    sizes = memory.memory_model(load_model(stage))
    goals = []
    for row in measured:
        if row.method and row.resident_bytes is not None and row.status == MEASURED:
            planned = sizes.resident_bytes(row.kept_tokens, row.batch)
            apart = abs(row.resident_bytes / planned - 1)
            goals.append(Goal(f"{name}: memory off the byte model", apart, 0.01, at_least=False))
    return goals


def failures(measured: Sequence[Measurement]) -> str:
    """Errors among the rows, as a note."""
    return "; ".join(f"{row.variant}: {row.note}" for row in measured if row.status == FAILED)


def uncaptured(stage: Stage, measured: Sequence[Measurement]) -> str:
    """Which steps were not recorded although a GPU is there, and why."""
    if stage.tiny:
        return ""
    return "; ".join(
        f"{row.variant}: not recorded, {row.reason}"
        for row in measured
        if row.status == MEASURED and not row.captured
    )


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / GIB:.3f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3f}"


def _quartiles(row: Measurement) -> str:
    pair = row.quartiles
    return "-" if pair is None else f"{1000 * pair[0]:.3f}..{1000 * pair[1]:.3f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}x"
