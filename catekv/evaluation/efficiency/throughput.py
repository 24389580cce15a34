"""Tokens per second with the largest batch that fits, for full attention and for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import memory
from catekv.evaluation.efficiency.measure import WARM_UP_STEPS, measure_one
from catekv.evaluation.efficiency.measurement import ABSENT, TOO_LARGE, Measurement
from catekv.evaluation.efficiency.variants import Setting, Variant, variants
from catekv.methods.base import Method
from catekv.model import CateKVModel
from catekv.prefill.capacity import Workload
from catekv.prefill.sizes import sizes_of_model

#: After running out of memory the batch shrinks by this share, and by one sequence at least.
SHRINK = 0.02
TRIES = 6


def largest_batch(
    model: CateKVModel,
    method: Method,
    length: int,
    steps: int,
    memory_limit: int | None = None,
) -> int:
    """Sequences whose caches fit beside the weights that are loaded already, by the arithmetic of
    ``catekv plan``.

    Args:
        method: decides what a sequence of ``length`` tokens keeps.
        steps: decode steps that the cache must have room for.
        memory_limit: bytes to use at most, instead of all that is free.

    Raises:
        UserError: nobody can tell how much memory the device has.
    """
    usable = memory.usable_bytes(model.device, memory_limit)
    if usable is None:
        raise UserError("the free memory of this device is not known; give --memory GIB")
    sizes = sizes_of_model(model.model)
    work = Workload(sizes, method, new_tokens=steps, device=model.device.type, prefilled=False)
    return work.largest_batch(length, usable + sizes.weight_bytes, reserve=0)


def throughput(
    model: CateKVModel,
    specs: Sequence[MethodSpec],
    length: int,
    *,
    new_tokens: int = 32,
    repeats: int = 2,
    baselines: Sequence[str] = ("kernel",),
    graph: str = "auto",
    memory_limit: int | None = None,
    report: Callable[[Measurement], None] | None = None,
    seed: int = 0,
) -> list[Measurement]:
    """One row per variant, each at its own largest batch, found by arithmetic and then allocated.

    Caches are filled at random. Where the arithmetic was too hopeful the batch shrinks until it
    fits. Arguments as in :func:`catekv.evaluation.efficiency.measure.measure`.
    """
    steps = WARM_UP_STEPS + repeats * new_tokens + 1
    model.refuse_beyond_window(length + steps)
    for spec in specs:
        spec.create().validate(model.shape)
    rows = []
    for variant in variants(model, specs, baselines):
        memory.free()
        row = _at_largest_batch(
            model, variant, length, steps, new_tokens, repeats, graph, memory_limit, seed
        )
        rows.append(row)
        if report is not None:
            report(row)
    return rows


def _at_largest_batch(
    model: CateKVModel,
    variant: Variant,
    length: int,
    steps: int,
    new_tokens: int,
    repeats: int,
    graph: str,
    memory_limit: int | None,
    seed: int,
) -> Measurement:
    row = Measurement(variant.label, length, 0, variant.method)
    if variant.absent:
        row.leave_out(ABSENT, variant.absent)
        return row
    if variant.kept(length) is None:
        row.leave_out(ABSENT, "decides its budgets for every prompt")
        return row
    batch = largest_batch(model, variant.method_for(length), length, steps, memory_limit)
    for _ in range(TRIES):
        if batch < 1:
            break
        setting = Setting(model, length, batch, steps, graph=graph, seed=seed)
        row = measure_one(setting, variant, new_tokens, repeats)
        if row.status != TOO_LARGE:
            return row
        batch -= max(1, int(batch * SHRINK))
    row.leave_out(TOO_LARGE, "not even a single sequence fits" if batch < 1 else "does not fit")
    return row
