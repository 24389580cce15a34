"""Latency, memory and throughput of full attention against compressed caches, in one run.

Every variant reads the same prompt and decodes the same number of tokens on the same device;
nothing stops early. Two full caches stand beside the methods: transformers' own ``DynamicCache``
(which copies itself at every step) and this project's cache with everything kept (allocated once,
new tokens appended), which is the honest base line. The ideal ratio counts bytes only.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.evaluation import environment, tables
from catekv.evaluation.records import write_text
from catekv.evaluation.settings import MethodSpec
from catekv.memory_model import MemoryModel

if TYPE_CHECKING:
    from catekv.model import CateKVModel

STOCK = "full, DynamicCache"
FULL = "full, ragged cache"
WARM_UP_STEPS = 3
WARM_UP_TOKENS = 64
#: Share of the free memory up to which all variants stay loaded and take turns.
_TOGETHER_SHARE = 0.4
_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
_COPY_REPEATS = 5


@dataclass
class Measurement:
    """One variant at one batch size; seconds and bytes, ``error`` instead where it failed.

    ``kept_tokens`` is the mean per layer and KV head. ``step_bytes`` are weights and cache that a
    decode step has to read; ``ideal`` is the full cache's step bytes over them.
    ``prefill_peak_bytes`` (CUDA only) counts what prefill held beyond the weights.
    """

    variant: str
    batch: int
    kept_tokens: float = 0.0
    stored_bytes: int = 0
    full_bytes: int = 0
    prefill_seconds: float = 0.0
    compress_seconds: float = 0.0
    prefill_peak_bytes: int | None = None
    step_seconds: list[float] = field(default_factory=list)
    step_bytes: float = 0.0
    ideal: float = 1.0
    error: str = ""

    @property
    def median_step(self) -> float | None:
        return statistics.median(self.step_seconds) if self.step_seconds else None


@dataclass(frozen=True)
class _Prepared:
    """A prefilled cache: ``fresh()`` gives one to decode with, as it was after the prompt."""

    fresh: Callable[[], Any]
    last_logits: Tensor


def measure(
    model: CateKVModel,
    specs: Sequence[MethodSpec],
    length: int,
    *,
    new_tokens: int = 32,
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 3,
    chunk_size: int = 8192,
    seed: int = 0,
) -> list[Measurement]:
    """Measure both full caches and every method at every batch size.

    Args:
        model: its weights may be random: only shapes matter here.
        specs: the methods beside full attention.
        length: prompt tokens, drawn at random.
        new_tokens: decode steps per measurement, warm-up not counted.
        repeats: rounds; in each one the variants take turns, so that a drifting machine hits all
            alike (as long as they fit into memory together).

    Raises:
        UserError: a number below 1 or a prompt longer than the model's window.
    """
    for name, value in (("length", length), ("new tokens", new_tokens), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    model._check_length(length + new_tokens + WARM_UP_STEPS)
    for spec in specs:
        spec.create().validate(model.shape)
    results: list[Measurement] = []
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.model.get_input_embeddings().weight.shape[0])
    for batch in batch_sizes:
        if batch < 1:
            raise UserError(f"batch size {batch} must be at least 1")
        ids = torch.randint(0, vocabulary, (batch, length), generator=generator).to(model.device)
        model.prefill(ids[:, :WARM_UP_TOKENS], method="full")
        results += _measure_batch(model, specs, ids, new_tokens, repeats, chunk_size)
    return results


def _measure_batch(
    model: CateKVModel,
    specs: Sequence[MethodSpec],
    ids: Tensor,
    new_tokens: int,
    repeats: int,
    chunk_size: int,
) -> list[Measurement]:
    batch = ids.shape[0]
    variants: list[tuple[Measurement, Callable[[Measurement], _Prepared]]] = [
        (Measurement(STOCK, batch), lambda m: _prepare_stock(model, ids, chunk_size, m)),
        (Measurement(FULL, batch), lambda m: _prepare(model, ids, chunk_size, "full", m)),
    ]
    for spec in specs:
        method = spec.for_prompt(ids.shape[1], model.shape)
        variants.append(
            (
                Measurement(spec.label, batch),
                lambda m, method=method: _prepare(  # type: ignore[misc]
                    model, ids, chunk_size, method, m
                ),
            )
        )
    together = _fits_together(model, ids, len(variants))
    prepared: dict[str, _Prepared] = {}
    for measurement, prepare in variants:
        with _noting_lack_of_memory(measurement):
            prepared[measurement.variant] = prepare(measurement)
            if not together:
                for _ in range(repeats):
                    _decode(model, prepared[measurement.variant], new_tokens, measurement)
        if not together:
            prepared.clear()
            _free()
    for _ in range(repeats if together else 0):
        for measurement, _prepare_variant in variants:
            if not measurement.error:
                with _noting_lack_of_memory(measurement):
                    _decode(model, prepared[measurement.variant], new_tokens, measurement)
    sizes = memory_model(model)
    for measurement, _prepare_variant in variants:
        measurement.step_bytes = sizes.step_bytes(measurement.kept_tokens, batch)
        measurement.ideal = sizes.decode_bound(ids.shape[1], measurement.kept_tokens, batch)
    return [measurement for measurement, _prepare_variant in variants]


def memory_model(model: CateKVModel) -> MemoryModel:
    """Sizes of a loaded model."""
    embedding = model.model.get_input_embeddings().weight
    output = model.model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    return MemoryModel(
        layers=model.shape.layers,
        kv_heads=model.shape.kv_heads,
        head_dim=model.shape.head_dim,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        # a tied table is the output head too, and that is read whole at every step
        embedding_parameters=0 if tied else embedding.numel(),
        element_bytes=embedding.element_size(),
    )


def _fits_together(model: CateKVModel, ids: Tensor, variants: int) -> bool:
    free = environment.free_memory_bytes(str(model.device))
    cache = memory_model(model).cache_bytes(ids.numel())
    return free is None or variants * cache <= _TOGETHER_SHARE * free


def _prepare(
    model: CateKVModel, ids: Tensor, chunk_size: int, method: Any, measurement: Measurement
) -> _Prepared:
    before = _start_peak(model.device)
    context = model.prefill(ids, chunk_size=chunk_size, method=method)
    measurement.prefill_peak_bytes = _peak_since(model.device, before)
    measurement.prefill_seconds = context.timings["prefill_seconds"]
    measurement.compress_seconds = context.timings["compress_seconds"]
    measurement.stored_bytes = context.stored_bytes()
    measurement.full_bytes = context.full_bytes()
    lengths = torch.stack([layer.double().mean() for layer in context.lengths()])
    measurement.kept_tokens = float(lengths.mean())
    return _Prepared(lambda: context.cache.fork(), context.last_logits)


@torch.inference_mode()
def _prepare_stock(
    model: CateKVModel, ids: Tensor, chunk_size: int, measurement: Measurement
) -> _Prepared:
    """The model exactly as transformers runs it, fed in chunks."""
    from transformers.cache_utils import DynamicCache

    before = _start_peak(model.device)
    clock = time.perf_counter()
    cache = DynamicCache(config=model.config)
    logits = torch.empty(0)
    for part in ids.split(chunk_size, dim=1):
        logits = model.model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    _synchronize(model.device)
    measurement.prefill_seconds = time.perf_counter() - clock
    measurement.prefill_peak_bytes = _peak_since(model.device, before)
    sizes = [
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    ]
    measurement.stored_bytes = measurement.full_bytes = sum(sizes)
    measurement.kept_tokens = float(ids.shape[1])

    def fresh() -> Any:
        # its layers replace their tensors and never write into them: copies may share
        again = copy.copy(cache)
        again.layers = [copy.copy(layer) for layer in cache.layers]
        return again

    return _Prepared(fresh, logits[:, -1])


@torch.inference_mode()
def _decode(
    model: CateKVModel, prepared: _Prepared, new_tokens: int, measurement: Measurement
) -> None:
    """Greedy steps of one token; the first ones warm up and are not recorded."""
    cache = prepared.fresh()
    tokens = prepared.last_logits.argmax(dim=-1, keepdim=True)
    _synchronize(model.device)
    for step in range(WARM_UP_STEPS + new_tokens):
        clock = time.perf_counter()
        logits = model.model(
            tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[:, -1]
        tokens = logits.argmax(dim=-1, keepdim=True)
        _synchronize(model.device)
        if step >= WARM_UP_STEPS:
            measurement.step_seconds.append(time.perf_counter() - clock)


@contextlib.contextmanager
def _noting_lack_of_memory(measurement: Measurement) -> Iterator[None]:
    """Running out of memory becomes a note in the measurement; other errors go on."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        measurement.error = "out of memory"
        measurement.step_seconds.clear()
        _free()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy (read and write counted), the best of a few."""
    size = _COPY_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.zeros(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(_COPY_REPEATS):
        _synchronize(device)
        clock = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        best = min(best, time.perf_counter() - clock)
    return 2 * size / best


def render(
    results: Sequence[Measurement], bandwidth: float, title: str, *, markdown: bool = False
) -> str:
    """One table per batch size: time, memory, implied bandwidth, and the ratio bytes would give."""
    table = tables.markdown_table if markdown else tables.plain_table
    blocks = [title]
    for batch in dict.fromkeys(result.batch for result in results):
        rows = [result for result in results if result.batch == batch]
        base = next(row for row in rows if row.variant == FULL).median_step
        blocks.append(("## " if markdown else "") + f"batch size {batch}")
        blocks.append(table(_HEADER, [_row(row, base, bandwidth) for row in rows]))
    blocks.append(
        f"copy bandwidth {bandwidth / 1e9:.1f} GB/s, measured in this run. ms/step: median of "
        "decode steps of one token. speed-up: against the full ragged cache (prefix allocated "
        "once); transformers' DynamicCache copies itself at every step. ideal: ratio of the bytes "
        "a step must read, weights included. GB/s: those bytes over the measured time."
    )
    return "\n\n".join(blocks) + "\n"


_HEADER = [
    "variant", "kept", "stored MiB", "full MiB", "prefill s", "compress s", "peak MiB", "ms/step",
    "speed-up", "ideal", "tokens/s", "GB/s", "of copy",
]  # fmt: skip


def _row(result: Measurement, base: float | None, bandwidth: float) -> list[str]:
    step = result.median_step
    if step is None:
        return [result.variant, *["-"] * (len(_HEADER) - 2), result.error or "-"]
    rate = result.step_bytes / step
    return [
        result.variant,
        tables.percent(result.stored_bytes / result.full_bytes),
        tables.mebibytes(result.stored_bytes),
        tables.mebibytes(result.full_bytes),
        tables.number(result.prefill_seconds, 2),
        tables.number(result.compress_seconds, 3),
        tables.mebibytes(result.prefill_peak_bytes),
        tables.milliseconds(step),
        "-" if base is None else f"{base / step:.2f}x",
        f"{result.ideal:.2f}x",
        tables.number(result.batch / step, 1),
        tables.number(rate / 1e9, 1),
        tables.percent(rate / bandwidth),
    ]


def run(arguments: argparse.Namespace) -> int:
    """The command ``catekv efficiency``; returns the exit code."""
    from catekv.cli import integers
    from catekv.evaluation.session import (
        Request,
        method_specs_for,
        model_name,
        open_model,
        split_list,
    )

    batch_sizes = integers("--batch-sizes", split_list(arguments.batch_sizes))
    request = Request(
        model=arguments.model,
        methods=tuple(arguments.methods),
        masks=tuple(arguments.mask),
        ratio=arguments.ratio,
        retention=arguments.retention,
        budget=arguments.budget,
        options=getattr(arguments, "options", {}),
        made_with=getattr(arguments, "made_with", {}),
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    if arguments.layers is not None and not arguments.random_weights:
        raise UserError("--layers cuts a configuration by name; add --random-weights")
    if arguments.random_weights:
        model = _random_model(request, arguments.layers)
        if not request.masks:
            # heads cost the same whichever they are
            request = dataclasses.replace(request, masks=("random:0",))
    else:
        model = open_model(request)
    specs = [s for s in method_specs_for(request, model) if s.name != "full"]
    results = measure(
        model,
        specs,
        arguments.length,
        new_tokens=arguments.new_tokens,
        batch_sizes=batch_sizes,
        repeats=arguments.repeats,
        chunk_size=arguments.chunk_size,
    )
    bandwidth = copy_bandwidth(model.device)
    device = environment.device_description(str(model.device))
    kind = "random weights, " if arguments.random_weights else ""
    layers = f"{model.shape.layers} layers, " if arguments.layers is not None else ""
    title = (
        f"{model_name(request)} ({kind}{layers}{str(model.dtype).removeprefix('torch.')}), "
        f"{arguments.length} tokens, {device['name']}"
    )
    print(render(results, bandwidth, title))
    if arguments.output is not None:
        _write(arguments, results, bandwidth, title, device)
    return 1 if any(result.error for result in results) else 0


def _random_model(request: Any, layers: int | None) -> CateKVModel:
    from catekv.model import CateKVModel

    if request.model is None:
        raise UserError("--random-weights needs the name of a configuration: --model llama3-8b-1m")
    return CateKVModel.from_config(
        request.model,
        random_weights=True,
        layers=layers,
        dtype=request.dtype,
        device=request.device,
        attention=request.attention,
    )


def _write(
    arguments: argparse.Namespace,
    results: Sequence[Measurement],
    bandwidth: float,
    title: str,
    device: dict[str, Any],
) -> None:
    content = {
        "title": title,
        "command": getattr(arguments, "command_line", ""),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "device": device,
        "length": arguments.length,
        "copy_bytes_per_second": bandwidth,
        "results": [
            {**dataclasses.asdict(r), "median_step_seconds": r.median_step} for r in results
        ],
    }
    folder: Path = arguments.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "efficiency.json", json.dumps(content, indent=2) + "\n")
        write_text(
            folder / "efficiency.md", render(results, bandwidth, f"# {title}", markdown=True)
        )
    except OSError as error:
        raise UserError(
            f"cannot write results to {folder}: {error.strerror}; choose another folder with "
            "--output"
        ) from error
    print(f"Results: {folder} (efficiency.json, efficiency.md)")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _peak_since(device: torch.device, before: int) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.max_memory_allocated(device)) - before


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
