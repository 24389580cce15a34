"""Decode steps of several variants at one length, one batch size after the other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import memory
from catekv.evaluation.efficiency.arguments import BASELINES
from catekv.evaluation.efficiency.breakdown import note_breakdown
from catekv.evaluation.efficiency.clock import step_times
from catekv.evaluation.efficiency.measurement import (
    ABSENT,
    MEASURED,
    TOO_LARGE,
    Measurement,
    kept_bytes,
)
from catekv.evaluation.efficiency.variants import (
    FILLS,
    RaggedStepper,
    Setting,
    Stepper,
    Variant,
    variants,
)
from catekv.model import CateKVModel
from catekv.prefill.sizes import GIB

WARM_UP_STEPS = 3
WARM_UP_TOKENS = 64
#: Share of the usable memory up to which all variants stay loaded and take turns.
_TOGETHER_SHARE = 0.8
#: Steps that the breakdown may add to those of the measurement.
_SPARE_STEPS = 8
#: Share of the usable memory that a cache takes whose layers share theirs.
_SHARED_SHARE = 0.9
#: Bytes that lie between two readings of the same memory at least: far more than any L2 holds.
_LEAST_DISTINCT = 1 << 30


def _check(counts: Mapping[str, int], fill: str) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    if fill not in FILLS:
        raise UserError(f"unknown fill {fill!r}; use {' or '.join(FILLS)}")


def measure(
    model: CateKVModel,
    specs: Sequence[MethodSpec],
    length: int,
    *,
    new_tokens: int = 32,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 3,
    chunk_size: int = 8192,
    fill: str = "random",
    baselines: Sequence[str] = BASELINES,
    graph: str = "auto",
    breakdown: bool = True,
    memory_limit: int | None = None,
    report: Callable[[Measurement], None] | None = None,
    seed: int = 0,
    share_layers: bool = False,
) -> list[Measurement]:
    """Measure full attention and every method at every batch size.

    Args:
        model: its weights may be random: only shapes matter here.
        specs: the methods beside full attention.
        length: context tokens.
        new_tokens: decode steps per round, warm-up not counted.
        repeats: rounds; in each one the variants take turns, so that a drifting machine hits all
            alike (as long as they fit into memory together).
        fill: ``random`` caches at the lengths a prompt would leave, or a real ``prefill``.
        baselines: names out of :data:`BASELINES`.
        graph: ``auto`` captures steps in a CUDA graph where that works, ``off`` never does, ``on``
            fails where it does not work.
        breakdown: also time the attention alone and the step without it.
        memory_limit: bytes of the device to use at most, weights not counted.
        report: called with every finished row.
        share_layers: a random cache that is too large is measured with layers that share memory,
            and the row says so; without this it is left out.

    Raises:
        UserError: a number below 1, an unknown choice, or a context longer than the model's window.
    """
    _check({"length": length, "new tokens": new_tokens, "repeats": repeats}, fill)
    steps = WARM_UP_STEPS + repeats * new_tokens + _SPARE_STEPS
    model.refuse_beyond_window(length + steps)
    for spec in specs:
        spec.create().validate(model.shape)
    chosen = variants(model, specs, baselines)
    results: list[Measurement] = []
    for batch in batch_sizes:
        if batch < 1:
            raise UserError(f"batch size {batch} must be at least 1")
        setting = Setting(model, length, batch, steps, fill, chunk_size, graph, seed)
        results += _measure_batch(
            setting, chosen, new_tokens, repeats, breakdown, memory_limit, report, share_layers
        )
    return results


@torch.no_grad()
def measure_one(
    setting: Setting, variant: Variant, new_tokens: int, repeats: int = 1
) -> Measurement:
    """One row; an error is a note in it, and nothing stays allocated.

    Whether it fits is found out by allocating it.
    """
    row = Measurement(
        variant.label, setting.length, setting.batch, variant.method, fill=setting.fill
    )
    memory.free()
    with memory.noting_errors(row):
        stepper = _prepare(setting, variant, row)
        _rounds(setting, [(row, stepper)], new_tokens, repeats, breakdown=False)
        del stepper
    memory.free()
    _finish(setting, row, None)
    return row


@torch.no_grad()
def _measure_batch(
    setting: Setting,
    chosen: Sequence[Variant],
    new_tokens: int,
    repeats: int,
    breakdown: bool,
    memory_limit: int | None,
    report: Callable[[Measurement], None] | None,
    share_layers: bool,
) -> list[Measurement]:
    rows = [
        Measurement(variant.label, setting.length, setting.batch, variant.method, fill=setting.fill)
        for variant in chosen
    ]
    memory.free()
    needed = [_needed_bytes(setting, variant) for variant in chosen]
    usable = memory.usable_bytes(setting.model.device, memory_limit)
    together = usable is None or sum(needed) <= _TOGETHER_SHARE * usable
    steppers: dict[str, Stepper] = {}
    sizes = [size for variant, size in zip(chosen, needed, strict=True) if not variant.absent]
    if setting.fill == "prefill" and (usable is None or min(sizes, default=usable + 1) <= usable):
        _warm_up(setting)
    for variant, row, size in zip(chosen, rows, needed, strict=True):
        fits = usable is None or size <= usable
        if not fits and share_layers and usable is not None:
            row.distinct_layers = _distinct_layers(setting, variant, size, usable)
        if variant.absent:
            row.leave_out(ABSENT, variant.absent)
        elif not fits and row.distinct_layers is None and usable is not None:
            row.leave_out(
                TOO_LARGE, f"needs {size / GIB:.2f} GiB of cache, {usable / GIB:.2f} GiB are usable"
            )
        else:
            with memory.noting_errors(row):
                own = dataclasses.replace(setting, distinct=row.distinct_layers)
                steppers[row.variant] = _prepare(own, variant, row)
                if not together:
                    _rounds(setting, [(row, steppers[row.variant])], new_tokens, repeats, breakdown)
        if not together:
            steppers.clear()
            memory.free()
            _finish(setting, row, report)
    if together:
        pairs = [(row, steppers[row.variant]) for row in rows if row.variant in steppers]
        _rounds(setting, pairs, new_tokens, repeats, breakdown)
        pairs.clear()
        steppers.clear()
        memory.free()
        for row in rows:
            _finish(setting, row, report)
    return rows


def _warm_up(setting: Setting) -> None:
    """A short prefill, so that the first row does not pay for what is built at first use."""
    # what fails here fails in the rows, which say so
    with contextlib.suppress(Exception):
        setting.model.prefill(setting.prompt[:, :WARM_UP_TOKENS], method="full", check_memory=False)


def _distinct_layers(setting: Setting, variant: Variant, size: float, usable: int) -> int | None:
    """How many layers of a cache of ``size`` bytes fit; None where sharing would not be honest."""
    layers = setting.model.shape.layers
    distinct = int(_SHARED_SHARE * usable / size * layers)
    cold = distinct * size / layers >= _LEAST_DISTINCT
    return distinct if cold and setting.fill == "random" and variant.shares_layers else None


def _needed_bytes(setting: Setting, variant: Variant) -> float:
    """Bytes of the cache while it decodes, as far as they are known beforehand."""
    if variant.absent:
        return 0.0
    sizes = memory.memory_model(setting.model)
    kept = variant.kept(setting.length)
    tokens = setting.length if kept is None else kept
    return setting.batch * sizes.cache_bytes(tokens + setting.steps)


def _prepare(setting: Setting, variant: Variant, row: Measurement) -> Stepper:
    sizes = memory.memory_model(setting.model)
    row.full_bytes = int(setting.batch * sizes.cache_bytes(setting.length))
    row.kept_tokens = float(setting.length)
    before = memory.allocated_bytes(setting.model.device)
    stepper = variant.build(setting, row)
    row.stored_bytes = stepper.stored_bytes()
    peak = memory.Peak(setting.model.device)
    with stepper.context():
        for _ in range(WARM_UP_STEPS):
            stepper.step()
    after = memory.allocated_bytes(setting.model.device)
    if before is not None and after is not None:
        # other variants may be loaded at the same time
        row.resident_bytes = sizes.parameters * sizes.element_bytes + after - before
    row.decode_peak_bytes = peak.highest()
    return stepper


def _rounds(
    setting: Setting,
    pairs: Sequence[tuple[Measurement, Stepper]],
    new_tokens: int,
    repeats: int,
    breakdown: bool,
) -> None:
    """Let the variants take turns; the breakdown comes last and once."""
    device = setting.model.device
    for _ in range(repeats):
        for row, stepper in pairs:
            if row.status != MEASURED:
                continue
            with memory.noting_errors(row), stepper.context():
                times, wall = step_times(stepper.step, new_tokens, device)
                row.step_seconds += times
                row.wall_seconds.append(wall)
    for row, stepper in pairs:
        row.captured, row.reason, row.fused = stepper.captured, stepper.reason, stepper.fused
        row.graph_bytes = stepper.graph_bytes
        if breakdown and row.status == MEASURED and isinstance(stepper, RaggedStepper):
            with memory.noting_errors(row):
                note_breakdown(setting, stepper, row)


def _finish(
    setting: Setting, row: Measurement, report: Callable[[Measurement], None] | None
) -> None:
    sizes = memory.memory_model(setting.model)
    row.step_bytes = sizes.step_bytes(0) + kept_bytes(row, sizes)
    row.ideal = sizes.step_bytes(setting.length, setting.batch) / row.step_bytes
    if report is not None:
        report(row)
