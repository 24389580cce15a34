"""Selection on a CPU: what every method of 2025 and 2026 takes to choose among a layer's tokens.

    python bench/cpu_selection.py
    python bench/cpu_selection.py --length 131072 --rounds 1

One layer of Llama-3-8B's extents with random states, a quarter of the entries kept. Methods take
turns in every round, so that a busy machine hits all alike; the fastest round counts, also of the
processor time of all threads. Temporaries are what the allocator hands out at the highest moment of
one selection, results included.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from catekv import methods
from catekv.commands.cli import Parser, run_safely
from catekv.commands.numbers import MOST_PARTS, thread_count, token_count, whole
from catekv.evaluation.tables import MIB, plain_table
from catekv.methods import Method, Observed
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.formulas.query_statistics import QueryStatistics
from catekv.models.rotation import Rotation
from catekv.models.shape import ModelShape

SHAPE = ModelShape(layers=1, query_heads=32, kv_heads=8, head_dim=128)
HIDDEN = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Label, method and options; a quarter of the tokens is added as the budget.
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "snapkv": ("snapkv", {}),
    "adakv": ("adakv", {}),
    "attention_matching": ("attention_matching", {}),
    "chunkkv": ("chunkkv", {}),
    "criticalkv": ("criticalkv", {}),
    "criticalkv, base adakv": ("criticalkv", {"base": "adakv"}),
    "defensivekv": ("defensivekv", {}),
    "expected_attention": ("expected_attention", {}),
    "keydiff": ("keydiff", {}),
    "keydiff, block 0": ("keydiff", {"block": 0}),
    "knorm": ("knorm", {}),
    "kvzap, linear": ("kvzap", {"untrained": True}),
    "kvzip": ("kvzip", {}),
    "r_kv": ("r_kv", {}),
    "random_attention": ("random_attention", {}),
    "tova": ("tova", {}),
    "triattention": ("triattention", {"protect_prompt": False}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure and print; returns the exit code."""
    parser = Parser(prog="bench/cpu_selection.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--length", type=token_count, default=4096, help="tokens of the prompt (default: 4096)")
    add("--methods", nargs="+", choices=list(COLUMNS), default=list(COLUMNS), metavar="LABEL")
    add("--dtype", choices=list(DTYPES), default="float32", help="of the states")
    add("--threads", type=thread_count, default=2, help="cores to use (default: 2)")
    add("--rounds", type=whole(1, MOST_PARTS), default=5, help="rounds (default: 5)")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words)
    return run_safely(lambda: run(parsed, shlex.join(["bench/cpu_selection.py", *words])))


def run(arguments: argparse.Namespace, command: str) -> int:
    """The table; 0."""
    torch.set_num_threads(arguments.threads)
    observed = layer_of(arguments.length, DTYPES[arguments.dtype])
    budget = max(1, arguments.length // 4)
    chosen = {label: method_of(label, budget, observed) for label in arguments.methods}
    times: dict[str, list[float]] = {label: [] for label in chosen}
    worked: dict[str, list[float]] = {label: [] for label in chosen}
    with torch.inference_mode():
        peaks = {label: peak_bytes(choosing(one, observed)) for label, one in chosen.items()}
        for _ in range(arguments.rounds):
            for label, method in chosen.items():
                clock, processor = time.perf_counter(), time.process_time()
                choosing(method, observed)()
                times[label].append(time.perf_counter() - clock)
                worked[label].append(time.process_time() - processor)
    rows = [
        [label, *(f"{1000 * min(kind[label]):.1f}" for kind in (times, worked))] for label in chosen
    ]
    for row in rows:
        row.append(f"{peaks[row[0]] / MIB:.0f}")
    rate = product_rate(DTYPES[arguments.dtype])
    print(f"{command}: {arguments.threads} threads, matrix products at {rate / 1e9:.0f} GFLOP/s")
    print(plain_table(["method", "ms a layer", "processor ms", "MiB at the peak"], rows))
    return 0


def layer_of(tokens: int, dtype: torch.dtype) -> Observed:
    """A layer's prompt with all that any of the methods needs; numbers of equal spread."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*extents: int) -> Tensor:
        return torch.randn(extents, generator=generator).to(dtype)

    heads, kv_heads, dim = SHAPE.query_heads, SHAPE.kv_heads, SHAPE.head_dim
    rotation = Rotation(5e5 ** (-torch.arange(0, dim, 2).float() / dim))
    sample = drawn(1, heads, 256, dim)
    moments = QueryMoments.none_yet(sample)
    moments.add(sample, rotation)
    way = methods.create("kvzip").needs.repeats[0]
    return Observed(
        3 * drawn(1, heads, min(1024, tokens), dim),  # attention as uneven as on text
        drawn(1, kv_heads, tokens, dim),
        drawn(1, kv_heads, tokens, dim),
        dim**-0.5,
        rotation=rotation,
        output_projection=drawn(heads, dim, HIDDEN) / HIDDEN**0.5,
        query_moments=moments,
        attention_inputs=drawn(1, tokens, HIDDEN),
        repeat_scores={way: drawn(1, kv_heads, tokens).float()},
    )


def method_of(label: str, budget: int, observed: Observed) -> Method:
    name, options = COLUMNS[label]
    given: dict[str, Any] = {**options, "budget": budget}
    if name == "triattention":
        parts = torch.randn(3, 1, SHAPE.query_heads, SHAPE.head_dim // 2)
        given["statistics"] = QueryStatistics(parts)
    return methods.create(name, **given)


def choosing(method: Method, observed: Observed) -> Callable[[], object]:
    """What is timed; the method sees as many queries as it asks for."""
    window = observed.queries[:, :, max(0, observed.queries.shape[2] - method.needs.window) :]
    seen = Observed(**{**vars(observed), "queries": window})
    return lambda: method.select_padded([seen], None)


def peak_bytes(step: Callable[[], object]) -> int:
    """Most bytes that the allocator had given at a moment of the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events: Sequence[Any] = profiled.profiler.kineto_results.events()
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the fastest of five."""
    left, right = torch.randn(2, 2048, 2048).to(dtype)
    seconds = []
    for _ in range(6):
        clock = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - clock)
    return 2 * 2048**3 / min(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
