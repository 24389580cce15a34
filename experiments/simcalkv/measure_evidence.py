"""Measurements behind docs/results/simcalkv.md: step errors, accuracy at equal memory, speed."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from catekv import methods
from catekv.commands.numbers import item_count, thread_count
from catekv.errors import UserError
from catekv.files import write_atomically
from catekv.version import __version__
from experiments.simcalkv import evidence_accuracy
from experiments.simcalkv.evidence_step import step_part
from experiments.simcalkv.journal import unfinished

PARTS = ("step", "accuracy", "speed")


def speed_part(threads: int) -> dict[str, Any]:
    """Merging one 4K prompt of a layer with 8 KV heads of size 128: milliseconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    tokens = 4096
    queries = torch.randn(1, 32, 1, 128, generator=generator)
    keys, values = torch.randn(2, 1, 8, tokens, 128, generator=generator)
    sums = torch.rand(1, 32, tokens, generator=generator)
    variants = {
        "published": methods.create("simcalkv"),
        "recommended": methods.create("simcalkv", preset="recommended"),
        "sequential": methods.create("simcalkv", merge_order="sequential"),
    }
    rows = []
    for kind in (torch.float32, torch.bfloat16):
        for name, method in variants.items():
            q, k, v = (part.to(kind) for part in (queries, keys, values))
            taken = []
            for _ in range(12):
                clock = time.perf_counter()
                method.select(q, k, v, 0, 32, column_sums=sums)
                taken.append(1000 * (time.perf_counter() - clock))
            rows.append({
                "dtype": str(kind).removeprefix("torch."), "variant": name,
                "fastest_ms": min(taken[2:]), "median_ms": statistics.median(taken[2:]),
            })  # fmt: skip
    torch.set_num_threads(before)
    return {"tokens": tokens, "threads": threads, "ratio": 0.4, "rows": rows}


def _accuracy(samples: int, folder: Path) -> None:
    """The accuracy part; what an interrupted run measured is not measured again."""
    compared = {
        name: choice.method().to_dict() for name, choice in evidence_accuracy.COMPARED.items()
    }
    recipe = {
        "catekv": __version__,
        "torch": torch.__version__,
        "samples": samples,
        "length": evidence_accuracy.LENGTH,
        "ratios": evidence_accuracy.RATIOS,
        "methods": compared,
    }
    with unfinished(folder, "accuracy", recipe) as journal:
        found = evidence_accuracy.accuracy_part(samples, journal, say)
        _write(folder, "accuracy", found, torch.get_num_threads())
        journal.remove()


def _write(folder: Path, part: str, found: dict[str, Any], threads: int) -> None:
    found["measured_with"] = {
        "catekv": __version__,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
    }
    write_atomically(folder / f"{part}.json", json.dumps(found, indent=1) + "\n")
    print(f"\n{folder / f'{part}.json'}")


def say(text: str) -> None:
    print(f"\r{text:60}", end="", file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the command."""
    parser.add_argument(
        "parts", nargs="*", default=list(PARTS), help=f"{', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--samples", type=item_count, default=4, help="prompts per task (default: 4)"
    )
    parser.add_argument(
        "--threads", type=thread_count, default=2, help="of the speed part (default: 2)"
    )
    parser.add_argument("--output_dir", default="docs/results/simcalkv", help="folder")


def command(parsed: argparse.Namespace) -> int:
    """Measure the wanted parts and write one JSON each; returns the exit code."""
    unknown = sorted(set(parsed.parts) - set(PARTS))
    if unknown:
        raise UserError(f"unknown part {unknown[0]!r}; available: {', '.join(PARTS)}")
    folder = Path(parsed.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if part not in parsed.parts:
                continue
            if part == "step":
                found = step_part(parsed.samples, folder, say)
                _write(folder, part, found, torch.get_num_threads())
            elif part == "accuracy":
                _accuracy(parsed.samples, folder)
            else:
                _write(folder, part, speed_part(parsed.threads), parsed.threads)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    return 0
