"""Time and memory of decoding against cache size, output length and context length.

Writes ``generation_times.json`` (mode -> cache size -> output length -> generation_time and
new_token_count) and ``MODE_SIZE.json`` (memory in MB at every context length).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.calibration.cokv.comparison import COMPARED, compared_method
from catekv.calibration.cokv.files import ScoreFile
from catekv.commands.cokv_arguments import TuneOptions
from catekv.commands.numbers import item_count, token_count
from catekv.commands.schema import Group, integers
from catekv.decode.generation import synchronize
from catekv.errors import UserError
from catekv.evaluation.efficiency.memory import Peak, free
from catekv.evaluation.records import environment
from catekv.evaluation.tables import markdown_table
from catekv.files import claim_folder, write_atomically
from catekv.models.shape import config_hash
from experiments.cokv.shared import main, open_model, parser

MEGABYTE = 1 << 20
TIMES = "generation_times.json"
CAPACITIES = Group(TuneOptions, ("capacities",), defaults={"capacities": (128,)})


def measure(arguments: argparse.Namespace) -> int:
    if "cokv" in arguments.modes and not arguments.scores:
        raise UserError(
            "latency of cokv needs --scores FILE of this model; or leave it out (--modes)"
        )
    model = open_model(arguments)
    capacities = CAPACITIES.values(arguments)["capacities"]
    outputs = integers("--outputs", arguments.outputs)
    contexts = integers("--contexts", arguments.contexts)
    claim_folder(arguments.output, ("latency.md", "manifest.json"), TIMES)
    cokv: dict[str, Any] = {}
    if "cokv" in arguments.modes:
        file = ScoreFile.load(arguments.scores)
        file.check_model(model.shape.layers, model.shape.kv_heads, config_hash(model.config))
        cokv = {"scores": file.estimates().tolist(), "alpha": arguments.alpha}
    runs = [("full", 0)] + [(mode, size) for mode in arguments.modes for size in capacities]
    made = {
        (mode, size): compared_method(mode, size, **(cokv if mode == "cokv" else {}))
        for mode, size in runs
    }
    found: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        # the runs take turns, so that other work on the machine meets all of them
        for length in outputs:
            for mode, size in runs:
                one = _generate(model, made[mode, size], arguments.prompt, length)
                found.setdefault((mode, size, length), []).append(one)
    times: dict[str, dict[str, dict[str, Any]]] = {}
    for (mode, size, length), rounds in found.items():
        best = {name: min(one[name] for one in rounds) for name in rounds[0]}
        times.setdefault(mode, {}).setdefault(str(size), {})[str(length)] = best
    rows = []
    for mode, size in runs:
        memory = [_memory(model, made[mode, size], context) for context in contexts]
        write_atomically(arguments.output / f"{mode}_{size}.json", json.dumps(memory) + "\n")
        rows.append((mode, size, times[mode][str(size)], memory))
    write_atomically(arguments.output / TIMES, json.dumps(times, indent=1) + "\n")
    _write(arguments, str(model.device), outputs, contexts, rows)
    return 0


def _prompt(model: Any, tokens: int) -> Any:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(4, model.config.get_text_config().vocab_size, (1, tokens),
                        generator=generator)  # fmt: skip
    return ids.to(model.device)


def _generate(model: Any, method: Any, prompt: int, new_tokens: int) -> dict[str, Any]:
    """Time of prefill, compression and all decode steps, and of one step."""
    ids = _prompt(model, prompt)
    synchronize(model.device)
    clock = time.perf_counter()
    context = model.prefill(ids, method=method)
    result = model.generate_ids([[]], context, new_tokens, [])
    synchronize(model.device)
    return {
        "generation_time": time.perf_counter() - clock,
        "new_token_count": len(result.tokens),
        "seconds_per_step": result.decode_seconds / max(1, result.steps),
    }


def _memory(model: Any, method: Any, tokens: int) -> float:
    """Peak MB beyond the weights on a GPU; elsewhere, where no peak is counted, the MB that the
    compressed cache stores."""
    free()
    peak = Peak(model.device)
    context = model.prefill(_prompt(model, tokens), method=method)
    model.generate_ids([[]], context, 1, [])
    since = peak.since_start()
    return round((context.stored_bytes() if since is None else since) / MEGABYTE, 3)


def _write(
    arguments: argparse.Namespace, device: str, outputs: Any, contexts: Any, rows: Any
) -> None:
    kind = "peak" if device.startswith("cuda") else "stored cache"
    lines = [
        f"Prompt {arguments.prompt} tokens; seconds for prefill and all new tokens, fastest of "
        f"{arguments.rounds} rounds; {kind} MB by context length.",
        "",
    ]
    header = ["mode", "capacity", *(f"{n} new" for n in outputs), "ms/step"]
    header += [f"MB at {n}" for n in contexts]
    body = []
    for mode, size, by_length, memory in rows:
        seconds = [f"{by_length[str(n)]['generation_time']:.2f}" for n in outputs]
        step = 1000 * by_length[str(outputs[-1])]["seconds_per_step"]
        sizes = [f"{megabytes:.2f}" for megabytes in memory]
        body.append([mode, str(size or "-"), *seconds, f"{step:.1f}", *sizes])
    lines.append(markdown_table(header, body))
    write_atomically(arguments.output / "latency.md", "\n".join(lines) + "\n")
    manifest = {
        "versions": environment.versions(),
        "device": environment.device_description(device),
        "prompt": arguments.prompt,
    }
    write_atomically(arguments.output / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--scores", type=Path, help="score file for cokv")
    options.add_argument(
        "--alpha", type=item_count, default=10, help="of cokv (default: 10, published)"
    )
    options.add_argument("--modes", nargs="+", default=["cokv", "snapkv"], choices=list(COMPARED))
    CAPACITIES.add(options)
    options.add_argument("--outputs", nargs="+", required=True, metavar="TOKENS")
    options.add_argument("--contexts", nargs="+", required=True, metavar="TOKENS")
    options.add_argument("--prompt", type=token_count, required=True, metavar="TOKENS")
    options.add_argument("--rounds", type=item_count, default=3)
    main(options, measure)
