"""The command ``catekv efficiency``, which is also ``test/eval_efficiency.py``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.evaluation.efficiency import plots, render, shapes
from catekv.evaluation.efficiency.arguments import BASELINES
from catekv.evaluation.efficiency.clock import copy_bandwidth
from catekv.evaluation.efficiency.measure import measure
from catekv.evaluation.efficiency.measurement import FAILED, Measurement
from catekv.evaluation.efficiency.throughput import throughput
from catekv.evaluation.records import environment
from catekv.files import write_atomically
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
RANDOM_NOTE = (
    "Weights are random: the time of a step depends on shapes and lengths, not on the values of "
    "the weights. Nothing here says how good answers are."
)
FILL_NOTE = (
    "Caches hold random entries at the lengths the methods would have kept of a prompt of this "
    "length; no prompt was read, so there is no prefill time."
)


def run(arguments: argparse.Namespace) -> int:
    """Measure what was asked for; returns the exit code (1 if a measurement failed)."""
    from catekv.commands.cli import integers
    from catekv.evaluation.run.request import EDGES, Request
    from catekv.evaluation.run.session import method_specs_for, split_list

    lengths = integers("--lengths", split_list(arguments.lengths))
    sizes = split_list(arguments.batch_sizes)
    largest = arguments.throughput or "max" in sizes
    batch_sizes = () if largest else integers("--batch-sizes", sizes)
    edges: dict[str, Any] = {name: getattr(arguments, name, None) for name in EDGES}
    request = Request(
        model=arguments.model,
        methods=tuple(arguments.methods),
        masks=tuple(arguments.masks),
        ratio=arguments.ratio,
        retention=arguments.retention,
        budget=arguments.budget,
        **edges,
        options=getattr(arguments, "options", {}),
        made_with=getattr(arguments, "made_with", {}),
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    if not lengths or min(lengths) < 1:
        raise UserError("--lengths takes at least one number of tokens above 0, e.g. 131072")
    known = shapes.is_known_shape(arguments.model)
    _check_kind(arguments, known)
    model, title, notes = _open(arguments, request, known, max(lengths))
    if known and not request.masks:
        # heads cost the same whichever they are
        request = dataclasses.replace(request, masks=("random:0",))
    lengths = tuple(shapes.scaled_length(length, arguments.scale) for length in lengths)
    fill = arguments.fill or ("random" if known or largest else "prefill")
    if fill == "random":
        notes.append(FILL_NOTE)
    specs = [spec for spec in method_specs_for(request, model) if spec.name != "full"]
    limit = _memory_limit(arguments, model, largest)
    notes += _busy_note(model)
    bandwidth = copy_bandwidth(model.device)
    results: list[Measurement] = []
    for length in lengths:
        if largest:
            rows = throughput(
                model,
                specs,
                length,
                new_tokens=arguments.new_tokens,
                repeats=arguments.repeats,
                baselines=arguments.baselines or ("kernel",),
                graph=arguments.graph,
                memory_limit=limit,
            )
        else:
            rows = measure(
                model,
                specs,
                length,
                new_tokens=arguments.new_tokens,
                batch_sizes=batch_sizes,
                repeats=arguments.repeats,
                chunk_size=arguments.chunk_size,
                fill=fill,
                baselines=arguments.baselines or BASELINES,
                graph=arguments.graph,
                memory_limit=limit,
            )
        results += rows
    writer = render.render_throughput if largest else render.render
    print(writer(results, bandwidth, title, notes=notes))
    if arguments.output is not None:
        _write(arguments, results, bandwidth, title, notes, model, writer)
    return 1 if any(row.status == FAILED for row in results) else 0


def _check_kind(arguments: argparse.Namespace, known: bool) -> None:
    shapes.check_scale(arguments.scale)
    if arguments.random_weights and not known:
        from catekv.models import presets

        raise UserError(
            f"--random-weights needs the name of a known shape, not {arguments.model!r}; known: "
            f"{', '.join(presets.available())}"
        )
    for option, value in (("--layers", arguments.layers), ("--scale", arguments.scale)):
        if value is not None and not known:
            raise UserError(
                f"{option} changes a known shape with random weights, such as llama3-8b-1m; "
                f"{arguments.model or 'the embedded model'} has weights of its own"
            )


def _open(
    arguments: argparse.Namespace, request: Request, known: bool, longest: int
) -> tuple[CateKVModel, str, list[str]]:
    """The model, the title of the report and its notes."""
    from catekv.evaluation.run.session import model_name, open_model
    from catekv.loading import resolve_device

    notes: list[str] = []
    lengths = ", ".join(arguments.lengths)
    if known:
        device = resolve_device(request.device)
        if device.type == "cpu" and arguments.scale is None and arguments.layers is None:
            raise UserError(
                f"{arguments.model} at {lengths} tokens is made for a GPU and none is used here; "
                "add --scale 0.1 to run a smaller model of the same proportions on the CPU"
            )
        room = shapes.scaled_length(longest, arguments.scale) + _ROOM
        model, note = shapes.random_model(
            arguments.model,
            room,
            scale=arguments.scale,
            layers=arguments.layers,
            dtype=request.dtype,
            device=request.device,
            attention=request.attention,
        )
        notes += [RANDOM_NOTE, note]
        if arguments.scale is not None:
            notes.append(_scale_note(arguments.scale, model))
        kind = "random weights, "
    else:
        model = open_model(request)
        kind = ""
    layers = f"{model.shape.layers} layers, " if arguments.layers or arguments.scale else ""
    scale = "" if arguments.scale is None else f", scale {arguments.scale:g}"
    device_name = environment.device_description(str(model.device))["name"]
    dtype = str(model.dtype).removeprefix("torch.")
    title = f"{model_name(request)} ({kind}{layers}{dtype}{scale}), {device_name}"
    return model, title, [note for note in notes if note]


def _scale_note(scale: float, model: CateKVModel) -> str:
    shape = model.shape
    return (
        f"Scaled by {scale:g}: {shape.layers} layers, {shape.query_heads} query heads, "
        f"{shape.kv_heads} KV heads of {shape.head_dim}; lengths are scaled too, the methods' "
        "options are not. This shows that the commands work, not what a GPU does."
    )


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


def _memory_limit(arguments: argparse.Namespace, model: CateKVModel, largest: bool) -> int | None:
    if arguments.memory is not None:
        if arguments.memory <= 0:
            raise UserError(f"--memory {arguments.memory:g} must be above 0 GiB")
        return int(arguments.memory * GIB)
    if not largest or model.device.type != "cpu":
        return None
    if arguments.scale is None:
        raise UserError(
            "the largest batch that fits a CPU's memory takes hours; say how much memory to use "
            "with --memory GIB, e.g. --memory 1"
        )
    return CPU_MEMORY


def _write(
    arguments: argparse.Namespace,
    results: Sequence[Measurement],
    bandwidth: float,
    title: str,
    notes: Sequence[str],
    model: CateKVModel,
    writer: Any,
) -> None:
    content = {
        "title": title,
        "notes": list(notes),
        "command": getattr(arguments, "command_line", ""),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "device": environment.device_description(str(model.device)),
        "copy_bytes_per_second": bandwidth,
        "results": [row.to_dict() for row in results],
    }
    folder: Path = arguments.output
    names = ["efficiency.json", "efficiency.md"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / names[0], json.dumps(content, indent=2) + "\n")
        write_atomically(
            folder / names[1],
            writer(results, bandwidth, f"# {title}", notes=notes, markdown=True),
        )
        plots.draw(folder / "efficiency.png", results, title)
        names.append("efficiency.png")
    except OSError as error:
        raise UserError(
            f"cannot write results to {folder}: {error.strerror}; choose another folder with "
            "--output"
        ) from error
    print(f"Results: {folder} ({', '.join(names)})")
