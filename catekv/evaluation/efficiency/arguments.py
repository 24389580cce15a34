"""What the efficiency commands are asked for beside models and methods; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catekv.evaluation.options import option

#: Implementations of full attention, in the order of the rows.
BASELINES = ("kernel", "sdpa", "flex", "flash", "flashinfer", "dynamic")
#: The fields that ``catekv efficiency`` and the published script spell alike.
MEASURING = (
    "repeats", "fill", "scale", "throughput", "baselines", "graph", "fused_step", "memory",
    "layers", "random_weights", "output",
)  # fmt: skip


@dataclass(frozen=True)
class Measuring:
    """What is measured."""

    lengths: tuple[int, ...] = option(
        (4096,), "context lengths in tokens (default: {default})", also=("--length",),
        metavar="TOKENS", least=1,
    )  # fmt: skip
    new_tokens: int = option(32, "decode steps measured per round (default: {default})")
    batch_sizes: tuple[str, ...] = option(
        ("1",), "batch sizes (default: {default}), or max: the largest that fits", metavar="N"
    )
    repeats: int = option(3, "rounds in which the variants take turns (default: {default})")
    fill: str | None = option(
        None,
        "caches of random entries at the lengths a prompt would leave (seconds; default with "
        "random weights), or of a real prompt",
        choices=("random", "prefill"),
    )
    scale: float | None = option(
        None,
        "shrink a known shape: layers, heads, width and length times S (0 < S <= 1), to try it on "
        "a CPU",
        metavar="S",
    )
    throughput: bool = option(False, "the largest batch that fits instead of given ones")
    baselines: tuple[str, ...] = option(
        (),
        f"full attention by: {', '.join(BASELINES)} (default: all; with --throughput: kernel)",
        choices=BASELINES,
        metavar="NAME",
    )
    graph: str = option(
        "auto",
        "decode from a CUDA graph where possible (default), always, or never",
        choices=("auto", "on", "off"),
    )
    fused_step: str = option(
        "auto",
        "decode in few launches a layer where possible on a GPU (default), always, or never; "
        "full attention gets the same step",
        choices=("auto", "on", "off"),
    )
    memory: float | None = option(None, "use at most so much beside the weights", metavar="GIB")
    layers: int | None = option(None, "only so many layers of a known shape")
    random_weights: bool = option(False, "MODEL is a known shape (found out by itself)")
    output: Path | None = option(None, "write efficiency.json, .md and .png into this folder")
