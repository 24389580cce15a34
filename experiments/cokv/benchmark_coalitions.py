"""How much faster coalitions are with one prefill per sample than with a prefill for each.

Both ways decode the same coalitions of the same samples and must give the same answers. The second
one reads the prompt anew for every coalition and decodes it alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv import tasks
from catekv.calibration.cokv.coalitions import CoalitionScorer, masked_context
from catekv.calibration.cokv.drawing import Draw, default_slices
from catekv.calibration.cokv.game import Members
from catekv.commands.numbers import item_count, token_count
from catekv.evaluation.records import environment
from catekv.evaluation.run.asking import Trial
from catekv.files import write_atomically
from catekv.kernels.ragged import storage_bytes
from catekv.methods import Needs
from experiments.cokv.shared import main, open_model, parser


def benchmark(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)
    together = CoalitionScorer(model, batch_size=arguments.batch_size)
    alone = CoalitionScorer(model, batch_size=1)
    players = together.layers * together.kv_heads
    sizes = default_slices(players)
    coalitions = [
        Draw(index, sizes[index % len(sizes)], "A").members(arguments.seed, players)
        for index in range(arguments.coalitions)
    ]
    rows = []
    for task in arguments.tasks:
        (sample,) = tasks.build(task, model.tokenizer, arguments.length, 1, arguments.seed)
        trial = Trial.of(sample, model.tokenizer, arguments.question)
        seconds: dict[str, list[float]] = {"shared": [], "anew": []}
        for _ in range(arguments.rounds):
            clock = time.perf_counter()
            first = together.answers(trial, coalitions)
            seconds["shared"].append(time.perf_counter() - clock)
            clock = time.perf_counter()
            second = [alone.answers(trial, [one])[0] for one in coalitions]
            seconds["anew"].append(time.perf_counter() - clock)
        best = {name: min(found) for name, found in seconds.items()}
        rows.append(
            {
                "task": task,
                "length": arguments.length,
                "coalitions": len(coalitions),
                "seconds": seconds,
                "speed_up": best["anew"] / best["shared"],
                "same_answers": sum(a == b for a, b in zip(first, second, strict=True)),
                **_bytes(model, together, trial, coalitions[: arguments.batch_size]),
            }
        )
        row = rows[-1]
        print(
            f"{task} at {arguments.length}: {best['shared']:.2f} s together, {best['anew']:.2f} s "
            f"with a prefill each, {row['speed_up']:.1f} times; {row['same_answers']} of "
            f"{len(coalitions)} answers the same; dense cache {row['dense_bytes']} bytes, a batch "
            f"of {row['batch']} masked views {row['further_bytes']} more"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "rows": rows,
        "threads": torch.get_num_threads(),
        "versions": environment.versions(),
        "device": environment.device_description(str(model.device)),
    }
    write_atomically(arguments.output, json.dumps(content, indent=1) + "\n")
    return 0


def _bytes(
    model: Any, scorer: CoalitionScorer, trial: Trial, coalitions: list[Members]
) -> dict[str, int]:
    """What the dense cache holds, and what a batch of coalitions allocates beside it."""
    dense = model.observe(trial.context_ids, needs=Needs())
    own = dense.cache.stored_bytes()
    shape = (-1, scorer.layers, scorer.kv_heads)
    context = masked_context(dense, np.stack(coalitions).reshape(shape), scorer.window)
    layers = [*dense.cache.ragged_layers, *context.cache.ragged_layers]
    both = storage_bytes([tensor for layer in layers for tensor in layer.tensors()])
    return {"dense_bytes": own, "further_bytes": both - own, "batch": len(coalitions)}


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--length", type=token_count, default=1024)
    options.add_argument("--coalitions", type=item_count, default=64)
    options.add_argument("--rounds", type=item_count, default=3)
    main(options, benchmark)
