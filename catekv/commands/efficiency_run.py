"""The command ``catekv efficiency``, which is also ``test/eval_efficiency.py``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.commands.schema import integers
from catekv.errors import UserError
from catekv.evaluation.efficiency import plots, render, shapes
from catekv.evaluation.efficiency.arguments import BASELINES, Measuring
from catekv.evaluation.efficiency.clock import copy_bandwidth
from catekv.evaluation.efficiency.measure import measure
from catekv.evaluation.efficiency.measurement import FAILED, Measurement
from catekv.evaluation.efficiency.throughput import throughput
from catekv.evaluation.records import environment
from catekv.evaluation.run.progress import LONG_SECONDS, foretold
from catekv.files import claim_folder, write_atomically
from catekv.prefill.sizes import GIB

if TYPE_CHECKING:
    from catekv.evaluation.run.request import Request
    from catekv.model import CateKVModel

#: Positions that a model must have beyond the context.
_ROOM = 4096
#: What the batches of a scaled run on a CPU may take: it is there to be tried.
CPU_MEMORY = GIB
#: Load per core from which on a CPU's times are called unreliable.
BUSY = 0.75
#: Files of the results, the first of which says whose they are.
NAMES = ("efficiency.json", "efficiency.md", "efficiency.png")
RANDOM_NOTE = (
    "Weights are random: the time of a step depends on shapes and lengths, not on the values of "
    "the weights. Nothing here says how good answers are."
)
FILL_NOTE = (
    "Caches hold random entries at the lengths the methods would have kept of a prompt of this "
    "length; no prompt was read, so there is no prefill time."
)


def run(asked: Measuring, request: Request, command: str) -> int:
    """Measure what was asked for; returns the exit code (1 if a measurement failed)."""
    from catekv.evaluation.run.session import check_methods, method_specs_for

    largest = _wants_largest(asked)
    batch_sizes = () if largest else integers("--batch-sizes", asked.batch_sizes)
    known = shapes.is_known_shape(request.model)
    _check_kind(asked, request.model, known)
    if not known:
        check_methods(request)
    model, title, notes = _open(asked, request, known)
    if known and not request.masks:
        # heads cost the same whichever they are
        request = dataclasses.replace(request, masks=("random:0",))
    fill = asked.fill or ("random" if known or largest else "prefill")
    if fill == "random":
        notes.append(FILL_NOTE)
    specs = [spec for spec in method_specs_for(request, model) if spec.name != "full"]
    shared: dict[str, Any] = {
        "new_tokens": asked.new_tokens,
        "repeats": asked.repeats,
        "graph": asked.graph,
        "memory_limit": _memory_limit(asked, model, largest),
    }
    if largest:
        shared["baselines"] = asked.baselines or ("kernel",)
    else:
        shared |= {
            "baselines": asked.baselines or BASELINES,
            "batch_sizes": batch_sizes,
            "chunk_size": request.chunk_size,
            "fill": fill,
        }
    notes += _busy_note(model)
    if asked.output is not None:
        claim_folder(asked.output, NAMES[1:], NAMES[0])
    bandwidth = copy_bandwidth(model.device)
    measured = throughput if largest else measure
    results: list[Measurement] = []
    start = time.monotonic()
    for position, length in enumerate(asked.lengths):
        results += measured(model, specs, shapes.scaled_length(length, asked.scale), **shared)
        if position == 0:
            _foretell(time.monotonic() - start, asked.lengths)
    writer = render.render_throughput if largest else render.render
    print(writer(results, bandwidth, title, notes=notes))
    if asked.output is not None:
        content = {
            "title": title,
            "notes": notes,
            "command": command,
            "versions": environment.versions(),
            "git_commit": environment.git_commit(),
            "device": environment.device_description(str(model.device)),
            "copy_bytes_per_second": bandwidth,
            "results": [row.to_dict() for row in results],
        }
        page = writer(results, bandwidth, f"# {title}", notes=notes, markdown=True)
        _write(asked.output, content, page, results)
    return 1 if any(row.status == FAILED for row in results) else 0


def _wants_largest(asked: Measuring) -> bool:
    """Whether the largest batch is asked for; ``UserError`` for what its search would not heed."""
    if not asked.throughput and "max" not in asked.batch_sizes:
        return False
    sizes = [size for size in asked.batch_sizes if size != "max"]
    if sizes and asked.batch_sizes != Measuring().batch_sizes:
        raise UserError(
            f"the largest batch and --batch-sizes {sizes[0]} are runs of their own; leave one out"
        )
    if asked.fill == "prefill":
        raise UserError(
            "the largest batch is found with random entries; leave out --fill prefill, or give "
            "--batch-sizes"
        )
    return True


def _foretell(seconds: float, lengths: Sequence[int]) -> None:
    """Say of a long run, after the first of its lengths, how long it will take."""
    whole = seconds * sum(lengths) / lengths[0]
    if whole - seconds >= LONG_SECONDS:
        shorter = (
            "fewer --lengths, --batch-sizes or --baselines, a smaller --repeats or --new-tokens"
        )
        print(foretold(whole, f"{seconds:.1f} s", shorter), file=sys.stderr, flush=True)


def _check_kind(asked: Measuring, model: str | None, known: bool) -> None:
    shapes.check_scale(asked.scale)
    if asked.random_weights and not known:
        from catekv.models import presets

        raise UserError(
            f"--random-weights needs the name of a known shape, not {model!r}; known: "
            f"{', '.join(presets.available())}"
        )
    for option, value in (("--layers", asked.layers), ("--scale", asked.scale)):
        if value is not None and not known:
            raise UserError(
                f"{option} changes a known shape with random weights, such as llama3-8b-1m; "
                f"{model or 'the embedded model'} has weights of its own"
            )


def _open(asked: Measuring, request: Request, known: bool) -> tuple[CateKVModel, str, list[str]]:
    """The model, the title of the report and its notes."""
    from catekv.evaluation.run.session import open_model
    from catekv.loading import resolve_device

    notes: list[str] = []
    if known:
        assert request.model is not None
        device = resolve_device(request.device)
        if device.type == "cpu" and asked.scale is None and asked.layers is None:
            lengths = ", ".join(map(str, asked.lengths))
            raise UserError(
                f"{request.model} at {lengths} tokens is made for a GPU and none is used here; "
                "add --scale 0.1 to run a smaller model of the same proportions on the CPU"
            )
        room = shapes.scaled_length(max(asked.lengths), asked.scale) + _ROOM
        model, note = shapes.random_model(
            request.model,
            room,
            scale=asked.scale,
            layers=asked.layers,
            dtype=request.dtype,
            device=request.device,
            attention=request.attention,
        )
        notes += [RANDOM_NOTE, note]
        if asked.scale is not None:
            notes.append(_scale_note(asked.scale, model))
        kind = "random weights, "
    else:
        model = open_model(request)
        kind = ""
    model.fused_step = asked.fused_step
    notes.append(_step_note(model))
    layers = f"{model.shape.layers} layers, " if asked.layers or asked.scale else ""
    scale = "" if asked.scale is None else f", scale {asked.scale:g}"
    device_name = environment.device_description(str(model.device))["name"]
    dtype = str(model.dtype).removeprefix("torch.")
    title = f"{request.model_name} ({kind}{layers}{dtype}{scale}), {device_name}"
    return model, title, [note for note in notes if note]


def _scale_note(scale: float, model: CateKVModel) -> str:
    shape = model.shape
    return (
        f"Scaled by {scale:g}: {shape.layers} layers, {shape.query_heads} query heads, "
        f"{shape.kv_heads} KV heads of {shape.head_dim}; lengths are scaled too, the methods' "
        "options are not. This shows that the commands work, not what a GPU does."
    )


def _step_note(model: CateKVModel) -> str:
    """Whether all steps of the report are fused."""
    if model.not_fused is None:
        return "Steps are fused (few launches a layer), those of full attention too."
    return f"Steps run the model's own forward and are not fused: {model.not_fused}."


def _busy_note(model: CateKVModel) -> list[str]:
    """A warning where other programs compete for the cores that the steps need."""
    if model.device.type != "cpu" or not hasattr(os, "getloadavg"):
        return []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < BUSY * cores:
        return []
    return [
        f"The machine was busy when this began (load average {load:.1f} on {cores} cores): times "
        "and ratios are not to be trusted, repeat it when nothing else runs."
    ]


def _memory_limit(asked: Measuring, model: CateKVModel, largest: bool) -> int | None:
    if asked.memory is not None:
        if asked.memory <= 0:
            raise UserError(f"--memory {asked.memory:g} must be above 0 GiB")
        return int(asked.memory * GIB)
    if not largest or model.device.type != "cpu":
        return None
    if asked.scale is None:
        raise UserError(
            "the largest batch that fits a CPU's memory takes hours; say how much memory to use "
            "with --memory GIB, e.g. --memory 1"
        )
    return CPU_MEMORY


def _write(
    folder: Path, content: dict[str, Any], page: str, results: Sequence[Measurement]
) -> None:
    try:
        write_atomically(folder / NAMES[0], json.dumps(content, indent=2) + "\n")
        write_atomically(folder / NAMES[1], page)
        plots.draw(folder / NAMES[2], results, content["title"])
    except OSError as error:
        raise UserError(
            f"cannot write results to {folder}: {error.strerror}; choose another folder with "
            "--output"
        ) from error
    print(f"Results: {folder} ({', '.join(NAMES)})")
