"""Decode steps of a real model on a CPU, in pairs with transformers' own cache.

    python bench/cpu_model.py --model MODEL --length 4000 --methods snapkv:keep=0.35

Each round takes one step of every variant, the products with all weights alone, and one large copy,
so that a busy machine hits all alike; ratios are medians over rounds of what was measured in the
same round. Processor time is beside the clock's, which counts what other programs take; `of its
bytes` is processor time over what the copy would need for the bytes of a step. Caches hold random
entries at the lengths that the methods keep; steps are those of answers
(:class:`catekv.decode.generation.Session`). Masks are random: what a step costs hangs on how many
entries heads keep, not on which.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from transformers import DynamicCache

from catekv import CateKVModel, HeadMask
from catekv.cache.attention import NAMES
from catekv.cache.cache import RaggedCache
from catekv.commands.cli import Parser, run_safely
from catekv.commands.numbers import MOST_PARTS, thread_count, token_count, whole
from catekv.decode.generation import Session
from catekv.evaluation.columns.specification import method_specs
from catekv.evaluation.efficiency.fill import fill_random_, random_cache
from catekv.evaluation.efficiency.memory import memory_model
from catekv.evaluation.tables import MIB, plain_table
from catekv.methods import create

STOCK, COPY = "transformers, DynamicCache", "copy"
PRODUCTS = "products with weights alone"
METHODS = ("snapkv:keep=0.35", "catekv:ratio=0.3,budget=512")
#: Bytes of the copied tensor: more than a processor's caches hold.
COPIED = 1 << 26
#: Rounds that are not counted.
WARM_UP = 2
#: Seconds of one step by the clock and of all threads' processor time.
Times = list[tuple[float, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure and print; returns the exit code."""
    parser = Parser(prog="bench/cpu_model.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder, GGUF file or hub name")
    add("--length", type=token_count, default=4000, help="context tokens (default: 4000)")
    add("--methods", nargs="+", default=list(METHODS), metavar="NAME:option=value", help="besides "
        f"full (default: {' '.join(METHODS)})")  # fmt: skip
    add("--threads", type=thread_count, default=1, help="cores to use (default: 1)")
    add("--rounds", type=whole(2, MOST_PARTS), default=25, help="rounds counted (default: 25)")
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words)
    return run_safely(lambda: run(parsed, shlex.join(["bench/cpu_model.py", *words])))


def run(arguments: argparse.Namespace, command: str) -> int:
    """The table; 0."""
    torch.set_num_threads(arguments.threads)
    model = CateKVModel.from_pretrained(arguments.model, method="full", device="cpu")
    model.refuse_beyond_window(arguments.length + arguments.rounds + WARM_UP)
    masks = {"random": HeadMask.random(model.shape, 0.3)}
    specs = method_specs(arguments.methods, masks, {})
    length = arguments.length
    caches = {"full": random_cache(model, create("full"), length)}
    for spec in specs:
        caches[spec.label] = random_cache(model, spec.for_prompt(length, model.shape), length)
    kept = {name: cache.kept_share() for name, cache in caches.items()}
    weights = memory_model(model).step_bytes(0)
    read = {name: weights + cache.stored_bytes() for name, cache in caches.items()}
    read[STOCK], kept[STOCK] = read["full"], 1.0
    read[PRODUCTS], kept[PRODUCTS] = weights, 0.0
    more = arguments.rounds + WARM_UP
    steps: dict[str, Callable[[Tensor], object]] = {
        name: Session(cache).open(model.model, more, None, "auto") for name, cache in caches.items()
    }
    steps[STOCK] = _stock(model, caches["full"])
    steps[PRODUCTS] = _products(model)
    steps[COPY] = _copy()
    times = _in_turns(steps, arguments.rounds, model)
    print(f"{command}: {arguments.threads} threads, weights {weights / MIB:.0f} MiB, {model.dtype}")
    print(plain_table(HEADER, [_row(name, times, kept[name], read[name]) for name in read]))
    bandwidth = [2 * COPIED / processor / 1e9 for _, processor in times[COPY]]
    print(
        f"copy, read and write counted: {statistics.median(bandwidth):.1f} GB/s of processor time"
    )
    return 0


def _stock(model: CateKVModel, full: RaggedCache) -> Callable[[Tensor], object]:
    """The same model and entries in transformers' cache, with the attention of transformers."""
    cache = DynamicCache(config=model.model.config)
    for index, layer in enumerate(full.ragged_layers):
        assert layer.prefix is not None
        keys, values = layer.prefix.dense()
        cache.update(keys.clone(), values.clone(), index)

    def step(tokens: Tensor) -> object:
        return model.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return step


def _products(model: CateKVModel) -> Callable[[Tensor], object]:
    """Every linear layer with one row, as a step has them, and nothing between them."""
    linear = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    rows = {width: torch.ones(1, 1, width) for width in {layer.in_features for layer in linear}}
    rows = {width: row.to(model.dtype) for width, row in rows.items()}
    return lambda _: [layer(rows[layer.in_features]) for layer in linear]


def _copy() -> Callable[[Tensor], object]:
    source = fill_random_(torch.empty(COPIED // 4))
    target = torch.empty_like(source)
    return lambda _: target.copy_(source)


def _in_turns(
    steps: dict[str, Callable[[Tensor], object]], rounds: int, model: CateKVModel
) -> dict[str, Times]:
    own = model.model.config._attn_implementation
    base = next(base for base, name in NAMES.items() if name == own)
    tokens = torch.ones(1, 1, dtype=torch.long)
    times: dict[str, Times] = {name: [] for name in steps}
    with torch.no_grad():
        for number in range(-WARM_UP, rounds):
            for name, step in steps.items():
                model.model.set_attn_implementation(base if name == STOCK else own)
                clock, processor = time.perf_counter(), time.process_time()
                step(tokens)
                both = time.perf_counter() - clock, time.process_time() - processor
                if number >= 0:
                    times[name].append(both)
    model.model.set_attn_implementation(own)
    return times


HEADER = (
    "variant", "kept", "MiB/step", "ms", "processor ms", "quartiles", "ms of stock",
    "processor of stock", "of its bytes",
)  # fmt: skip


def _row(name: str, times: dict[str, Times], kept: float, read: float) -> list[str]:
    own, stock, copy = times[name], times[STOCK], times[COPY]

    def paired(others: Times, kind: int) -> float:
        pairs = zip(own, others, strict=True)
        return statistics.median(mine[kind] / other[kind] for mine, other in pairs)

    clock, processor = ([1000 * both[kind] for both in own] for kind in (0, 1))
    low, middle, high = statistics.quantiles(processor, n=4, method="inclusive")
    return [
        name,
        f"{kept:.1%}",
        f"{read / MIB:.0f}",
        f"{statistics.median(clock):.1f}",
        f"{middle:.1f}",
        f"{low:.1f}..{high:.1f}",
        f"{paired(stock, 0):.2f}",
        f"{paired(stock, 1):.2f}",
        f"{paired(copy, 1) * 2 * COPIED / read:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
