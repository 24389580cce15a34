"""A plan as text: one table of what it takes, one of what fits, one of the prefill's peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from catekv.evaluation import tables
from catekv.prefill.capacity import RESERVE_BATCH, RESERVE_SINGLE
from catekv.prefill.sizes import GB, GIB

if TYPE_CHECKING:
    from catekv.evaluation.plan import Plan

Side = dict[str, Any]

#: What the numbers do not know of methods that do not simply free what they drop.
_EFFECTS = {
    "skips": "stores everything and reads a part of it at every step; the bytes per step count all "
    "of it.",
    "moves": "moves entries to host memory; they count as if they stayed on the device.",
}


def render(plan: Plan) -> str:
    """The plan for a terminal."""
    full, ours = plan.sides()
    parts = [
        _title(plan),
        tables.plain_table(["", "full", plan.label, "ratio"], _needs(plan, full, ours)),
        f"A decode step cannot become more than {plan.ideal_ratio:.2f}x faster.",
        _device_line(plan),
        tables.plain_table(["", "full", plan.label, "ratio"], _limits(plan, full, ours)),
        "The fullest moment of the prefill, which goes layer by layer:",
        tables.plain_table(["GiB", "full", plan.label], _terms(full, ours)),
        *_notes(plan, full, ours),
    ]
    return "\n\n".join(parts) + "\n"


def _title(plan: Plan) -> str:
    method = plan.methods[1].to_dict()
    options = [
        f"{letter} {method[name]:g}"
        for name, letter in (
            ("keep", "keep"),
            ("ratio", "r"),
            ("retention", "eta"),
            ("budget", "b"),
        )
        if isinstance(method.get(name), int | float)
    ]
    if "store" in method:
        options.append(str(method["store"]))
    settings = ", ".join([f"{plan.length} tokens", f"batch {plan.batch}", plan.dtype])
    return f"{plan.model}: {settings}; {' '.join([plan.label, *options])}"


def _needs(plan: Plan, full: Side, ours: Side) -> list[list[str]]:
    def row(name: str, value: Callable[[Side], float], unit: float, digits: int = 2) -> list[str]:
        left, right = value(full), value(ours)
        ratio = f"{left / right:.2f}x" if right else "-"
        return [name, f"{left / unit:.{digits}f}", f"{right / unit:.{digits}f}", ratio]

    rows = [
        row("tokens kept per head", lambda side: side["kept_tokens_per_head"], 1, 0),
        row("weights GiB", lambda side: side["weight_bytes"], GIB),
        row("cache GiB", lambda side: side["cache_bytes"], GIB),
        row(
            "cache and weights GiB",
            lambda side: side["cache_bytes"] + side["weight_bytes"],
            GIB,
        ),
        row(
            f"with room for {plan.new_tokens} new tokens GiB",
            lambda side: side["resident_bytes"],
            GIB,
        ),
        row("peak of the prefill GiB", lambda side: side["prefill_peak"]["bytes"], GIB),
        row("GB read per decode step", lambda side: side["step_bytes"], GB),
    ]
    if full["step_seconds_at_least"] is not None:
        rows.append(
            row("ms per decode step, at least", lambda side: side["step_seconds_at_least"], 1e-3)
        )
    return rows


def _device_line(plan: Plan) -> str:
    device = plan.device
    return (
        f"On {device.name} ({device.memory_bytes / GIB:.2f} GiB), {RESERVE_SINGLE / GIB:.0f} GiB "
        f"left free by a single sequence and {RESERVE_BATCH / GIB:.0f} GiB by a batch:"
    )


def _limits(plan: Plan, full: Side, ours: Side) -> list[list[str]]:
    def count(value: int | None) -> str:
        return "any" if value is None else str(value)

    def row(name: str, key: str) -> list[str]:
        left, right = full[key], ours[key]
        ratio = f"{right / left:.2f}x" if left and right else "-"
        return [name, count(left), count(right), ratio]

    def answer(name: str, key: str) -> list[str]:
        return [name, *("yes" if side[key] else "no" for side in (full, ours)), ""]

    sequences = "one sequence" if plan.batch == 1 else f"{plan.batch} sequences"
    return [
        answer("this request fits", "fits"),
        answer("  with its cache loaded, not prefilled", "fits_loaded"),
        row(f"longest context, tokens ({sequences})", "longest_context"),
        row("  with its cache loaded, not prefilled", "longest_context_loaded"),
        row(f"largest batch of {plan.length} tokens", "largest_batch"),
        row("  with its cache loaded, not prefilled", "largest_batch_loaded"),
    ]


def _terms(full: Side, ours: Side) -> list[list[str]]:
    named: dict[str, str] = {}
    values: list[dict[str, float]] = []
    for side in (full, ours):
        terms = side["prefill_peak"]["terms"]
        named.update({term["name"]: term["meaning"] for term in terms if term["bytes"]})
        values.append({term["name"]: term["bytes"] for term in terms})
    rows = [
        [f"{name}: {meaning}", *(f"{value.get(name, 0.0) / GIB:.3f}" for value in values)]
        for name, meaning in named.items()
    ]
    totals = [f"{side['prefill_peak']['bytes'] / GIB:.3f}" for side in (full, ours)]
    moments = list(dict.fromkeys(_moment(side) for side in (full, ours)))
    return [*rows, ["; ".join(moments), *totals]]


def _moment(side: Side) -> str:
    peak = side["prefill_peak"]
    return f"{peak['moment']} in layer {peak['layer']}"


def _notes(plan: Plan, full: Side, ours: Side) -> list[str]:
    notes = []
    effect = plan.methods[1].effect
    if effect in _EFFECTS:
        notes.append(f"{plan.label} {_EFFECTS[effect]}")
    if not ours["kept_is_known"]:
        notes.append(
            f"{plan.label} decides by the prompt's content how much it keeps; it counts as keeping "
            "everything here."
        )
    if plan.window is not None and plan.length > plan.window:
        notes.append(
            f"The model was made for {plan.window} tokens: beyond them only speed and memory mean "
            "anything."
        )
    return notes
