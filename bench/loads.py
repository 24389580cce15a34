"""Inputs of the decode kernel, and its time on them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import Scale
from catekv import kernels
from catekv.evaluation.efficiency import dense
from catekv.evaluation.efficiency.clock import cold_times
from catekv.evaluation.efficiency.fill import fill_random_, random_prefix
from catekv.kernels.ragged import RaggedPrefix

TAIL, USED = 64, 9
REPEATS = 15
#: Launches are timed one behind the other on caches of so many bytes together (the L2 of an H200
#: has 60 MiB), but on at least and at most so many of them.
TOGETHER, LEAST_LAUNCHES, MOST_LAUNCHES = 2 << 30, 2, 32
#: What a decode launch gets: queries, prefix, tail keys, tail values, factor, used columns.
Inputs = tuple[Tensor, RaggedPrefix, Tensor, Tensor, float, Tensor]


@dataclass(frozen=True)
class Load:
    """One layer: rows in (sequence, KV head) order and the model's extents."""

    name: str
    lengths: tuple[int, ...]
    kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that a launch must read, the used tail included."""
        entries = sum(self.lengths) + USED * len(self.lengths)
        return 2 * entries * self.head_dim * self.dtype.itemsize


def make(scale: Scale, load: Load, seed: int = 0) -> Inputs:
    """The arguments of a decode launch."""
    batch = len(load.lengths) // load.kv_heads
    prefix = random_prefix(
        list(load.lengths), load.kv_heads, load.head_dim, load.dtype, scale.device, seed
    )

    def draw(heads: int, tokens: int, seed: int) -> Tensor:
        shape = (batch, heads, tokens, load.head_dim)
        return fill_random_(torch.empty(shape, dtype=load.dtype, device=scale.device), seed)

    used = torch.tensor([USED], dtype=torch.int32, device=scale.device)
    queries = draw(load.kv_heads * load.group, 1, 1)
    tails = draw(load.kv_heads, TAIL, 2), draw(load.kv_heads, TAIL, 3)
    return queries, prefix, *tails, load.head_dim**-0.5, used


def seconds(scale: Scale, load: Load) -> tuple[float, int]:
    """Median time of one launch, and of how many runs.

    As in a model, launches follow each other on different caches, here so many that none is still
    in the device's own cache when its turn comes.
    """
    inputs = make_several(scale, load)
    workspace = kernels.Workspace()

    def decode(
        queries: Tensor,
        prefix: RaggedPrefix,
        tail_keys: Tensor,
        tail_values: Tensor,
        scaling: float,
        used: Tensor,
    ) -> Tensor:
        return kernels.ragged_decode(
            queries, prefix, tail_keys, tail_values, scaling, tail_length=used, workspace=workspace
        )

    repeats = 2 if scale.tiny else REPEATS
    return launch_seconds(scale, decode, inputs, repeats), repeats


def make_several(scale: Scale, load: Load) -> list[Inputs]:
    """Inputs of launches behind each other, together larger than the device's own cache."""
    return [make(scale, load, seed) for seed in range(_launches(scale, load))]


def _launches(scale: Scale, load: Load) -> int:
    count = -(-TOGETHER // load.nbytes)
    return 2 if scale.tiny else max(LEAST_LAUNCHES, min(MOST_LAUNCHES, count))


def launch_seconds(
    scale: Scale, decode: Callable[..., Tensor], inputs: Sequence[tuple[Any, ...]], repeats: int
) -> float:
    """Median time per launch of ``decode`` on all the inputs, one behind the other."""

    def run() -> Tensor:
        return [decode(*given) for given in inputs][-1]

    times = cold_times(run, repeats, torch.device(scale.device))
    return statistics.median(times) / len(inputs)


def rival_seconds(scale: Scale, load: Load, library: dense.Library) -> float:
    """Median time per launch of another library on rows that are all equally long."""
    batch, tokens = len(load.lengths) // load.kv_heads, load.lengths[0] + USED
    readers = [
        library.reader(
            batch,
            load.kv_heads,
            tokens,
            load.head_dim,
            load.dtype,
            torch.device(scale.device),
            seed,
        )
        for seed in range(_launches(scale, load))
    ]
    shape = (batch, load.kv_heads * load.group, 1, load.head_dim)
    queries = fill_random_(torch.empty(shape, dtype=load.dtype, device=scale.device))

    def attend(reader: dense.Reader) -> Tensor:
        return reader.attend(queries, load.head_dim**-0.5)

    inputs = [(reader,) for reader in readers]
    return launch_seconds(scale, attend, inputs, 2 if scale.tiny else REPEATS)
