"""Decode on a CPU: CateKV against dense attention at 16K tokens.

    python bench/cpu_decode.py --output docs/results

Two tables: the attention of a decode step with the heads of Llama-3-8B, and the step of a whole
smaller model of the same proportions. Variants take turns in every round, so that a busy machine
hits all alike; medians and quartiles over all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv import HeadMask, kernels
from catekv.commands.cli import Parser, run_safely
from catekv.commands.numbers import MOST_PARTS, thread_count, token_count, whole
from catekv.evaluation import tables
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.efficiency import render, shapes
from catekv.evaluation.efficiency.clock import copy_bandwidth
from catekv.evaluation.efficiency.fill import random_prefix
from catekv.evaluation.efficiency.measure import measure
from catekv.evaluation.records import environment
from catekv.files import write_atomically
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods import create
from catekv.models.shape import ModelShape
from catekv.prefill.sizes import GB

#: Attention layers of Llama-3-8B's extents that are timed behind each other.
SHAPE = ModelShape(layers=4, query_heads=32, kv_heads=8, head_dim=128)
MODEL, SCALE = "llama3-8b-1m", 0.25
TAIL = 8
GROUPED, TRANSFORMERS = "dense, torch SDPA (grouped)", "dense, torch SDPA (enable_gqa)"
OURS_FULL, OURS = "full, our torch path", "catekv, our torch path"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print and write; returns the exit code."""
    parser = Parser(prog="bench/cpu_decode.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--length", type=token_count, default=16384, help="context tokens (default: 16384)")
    add("--ratio", type=float, default=0.3, help="r, share of adaptive heads (default: 0.3)")
    add("--budget", type=token_count, default=2048, help="b, tokens a consistent head keeps")
    add("--threads", type=thread_count, default=2, help="cores to use (default: 2)")
    add(
        "--rounds",
        type=whole(2, MOST_PARTS),
        default=15,
        help="rounds in which variants take turns (default: 15)",
    )
    add(
        "--batch-sizes",
        type=whole(1, MOST_PARTS),
        nargs="+",
        default=[1, 4],
        help="of the whole model",
    )
    add("--output", type=Path, help="write cpu_decode.json and .md into this folder")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words)
    return run_safely(lambda: run(parsed, shlex.join(["bench/cpu_decode.py", *words])))


def run(arguments: argparse.Namespace, command: str) -> int:
    """Both tables; 0."""
    torch.set_num_threads(arguments.threads)
    load_before = os.getloadavg()[0]
    bandwidth = copy_bandwidth(torch.device("cpu"))
    attention = [
        row for dtype in (torch.float32, torch.bfloat16) for row in time_attention(arguments, dtype)
    ]
    model, _ = shapes.random_model(MODEL, arguments.length + 4096, scale=SCALE, device="cpu")
    mask = HeadMask.random(model.shape, arguments.ratio)
    options = {"head_mask": mask, "ratio": arguments.ratio, "budget": arguments.budget}
    whole = measure(
        model,
        [MethodSpec("catekv", "catekv", options)],
        arguments.length,
        new_tokens=4,
        repeats=arguments.rounds,
        batch_sizes=arguments.batch_sizes,
        baselines=("kernel", "sdpa", "dynamic"),
    )
    shape = model.shape
    title = (
        f"{MODEL} scaled by {SCALE:g}: {shape.layers} layers, {shape.query_heads} query heads, "
        f"{shape.kv_heads} KV heads of {shape.head_dim}, float32"
    )
    content = {
        "command": command,
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "device": {**environment.device_description("cpu"), "model": _processor()},
        "threads": arguments.threads,
        "load_average": [load_before, os.getloadavg()[0]],
        "copy_bytes_per_second": bandwidth,
        "attention": attention,
        "model": {"title": title, "results": [row.to_dict() for row in whole]},
    }
    text = _text(content, whole, title, bandwidth)
    print(text)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.output / "cpu_decode.json", json.dumps(content, indent=2) + "\n")
        write_atomically(arguments.output / "cpu_decode.md", text)
    return 0


def _interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    with torch.no_grad():
        for step in steps.values():
            step()
        for _ in range(rounds):
            for name, step in steps.items():
                clock = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - clock)
    return times


def time_attention(arguments: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per variant: seconds of the attention of a step over all layers of :data:`SHAPE`."""
    length = arguments.length
    mask = HeadMask.random(SHAPE, arguments.ratio)
    method = create("catekv", head_mask=mask, ratio=arguments.ratio, budget=arguments.budget)
    heads, dim = SHAPE.kv_heads, SHAPE.head_dim

    def prefixes(table: Tensor) -> list[RaggedPrefix]:
        return [
            random_prefix(row.tolist(), heads, dim, dtype, "cpu", layer)
            for layer, row in enumerate(table)
        ]

    full = prefixes(create("full").budget_table(length, SHAPE))
    ours = prefixes(method.budget_table(length, SHAPE))
    # a dense cache has the newest tokens behind the others, in the same tensor
    extents = (1, heads, length + TAIL, dim)
    dense = [(torch.randn(extents).to(dtype), torch.randn(extents).to(dtype)) for _ in full]
    queries = torch.randn(1, SHAPE.query_heads, 1, dim).to(dtype)
    tail = torch.randn(1, heads, TAIL, dim).to(dtype)
    scaling = dim**-0.5

    def ragged(layers: list[RaggedPrefix]) -> Callable[[], None]:
        def step() -> None:
            for prefix in layers:
                kernels.ragged_decode(queries, prefix, tail, tail, scaling)

        return step

    def grouped() -> None:
        for keys, values in dense:
            F.scaled_dot_product_attention(queries.view(1, heads, -1, dim), keys, values)

    def as_transformers() -> None:
        for keys, values in dense:
            F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)

    whole = sum(keys.nbytes + values.nbytes for keys, values in dense)
    kept = sum(prefix.keys.nbytes + prefix.values.nbytes for prefix in ours)
    variants = {
        GROUPED: (grouped, whole),
        TRANSFORMERS: (as_transformers, whole),
        OURS_FULL: (ragged(full), whole),
        OURS: (ragged(ours), kept + SHAPE.layers * 2 * tail.nbytes),
    }
    times = _interleaved({name: step for name, (step, _) in variants.items()}, arguments.rounds)
    base = statistics.median(times[GROUPED])
    return [
        {
            "type": str(dtype).removeprefix("torch."),
            "variant": name,
            "bytes": size,
            "seconds": times[name],
            "median_seconds": statistics.median(times[name]),
            "speed_up": base / statistics.median(times[name]),
            "ideal": whole / size,
        }
        for name, (_, size) in variants.items()
    ]


def _text(content: dict[str, Any], whole: Any, title: str, bandwidth: float) -> str:
    header = [
        "variant",
        "type",
        "MiB",
        "ms",
        "quartiles",
        "fastest",
        "GB/s",
        "vs dense SDPA",
        "bytes",
    ]
    body = []
    for row in content["attention"]:
        low, _, high = statistics.quantiles(row["seconds"], n=4, method="inclusive")
        body.append(
            [
                row["variant"],
                row["type"],
                f"{row['bytes'] / 2**20:.0f}",
                f"{1000 * row['median_seconds']:.1f}",
                f"{1000 * low:.1f}..{1000 * high:.1f}",
                f"{1000 * min(row['seconds']):.1f}",
                f"{row['bytes'] / row['median_seconds'] / GB:.1f}",
                f"{row['speed_up']:.2f}x",
                f"{row['ideal']:.2f}x",
            ]
        )
    versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    loads = " and ".join(f"{load:.1f}" for load in content["load_average"])
    parts = [
        "# Decode on a CPU",
        f"`{content['command']}`, {content['device']['model']}, {content['threads']} threads, "
        f"commit {content['git_commit'] or 'unknown'}; load average before and after: {loads}.",
        f"{versions}.",
        f"## Attention of a decode step, {SHAPE.layers} layers with the heads of Llama-3-8B",
        tables.markdown_table(header, body),
        "`bytes`: keys and values of the dense cache over those of the variant, the ideal ratio.",
        render.render(whole, bandwidth, f"## {title}", markdown=True).replace("\n## ", "\n### "),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    sys.exit(main())
