"""How far one decode step is off after a prompt was evicted or merged, head by head.

The step is that of the token behind the prompt: its query attends to what is left of the prompt and
to its own key. The error of a query head is the length of the difference to the output of full
attention, relative to that output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from catekv import kernels, methods
from catekv.methods import Method
from catekv.methods.simcalkv.merge import LOG_2
from experiments.simcalkv.tensors import LayerTensors, Recorded

#: what is compared, by name: SimCalKV with these options
VARIANTS: dict[str, dict[str, Any]] = {
    "evict": {"threshold": 1.0, "calibration": "none"},
    "merge, none": {"calibration": "none"},
    "merge, key_const": {"calibration": "key_const"},
    "merge, logit": {"calibration": "logit"},
    "merge, logit, uniform": {"calibration": "logit", "key_mean": "uniform"},
}


@dataclass(frozen=True)
class StepError:
    """One query head of one layer of one sample.

    Attributes:
        shift: what ln 2 on every key coordinate adds to this query's logits (wanted: ln 2).
    """

    sample: str
    layer: int
    query_head: int
    ratio: float
    variant: str
    error: float
    shift: float


class Quartiles(NamedTuple):
    """Of some errors; ``number`` is how many."""

    low: float
    median: float
    high: float
    number: int


@torch.no_grad()
def step_errors(
    sample: str,
    recorded: Recorded,
    ratios: Sequence[float],
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
) -> Iterable[StepError]:
    """Errors of the first token behind the prompt, of every layer, head, ratio and variant."""
    for index, layer in recorded.layers.items():
        tokens = recorded.prompt_tokens
        query = layer.queries[None, :, tokens : tokens + 1]
        sums = kernels.column_sums(
            layer.queries[None, :, :tokens], layer.keys[None, :, :tokens], layer.scaling
        )
        full = _attend(methods.create("full"), layer, tokens, sums, index)
        shift = (LOG_2 * query[0, :, 0].float().sum(dim=-1) * layer.scaling).tolist()
        for ratio in ratios:
            for name, options in variants.items():
                method = methods.create("simcalkv", ratio=ratio, **options)
                output = _attend(method, layer, tokens, sums, index)
                size = torch.linalg.vector_norm(full, dim=-1)
                error = torch.linalg.vector_norm(output - full, dim=-1) / size
                for head, value in enumerate(error.tolist()):
                    yield StepError(sample, index, head, ratio, name, value, shift[head])


def _attend(method: Method, layer: LayerTensors, tokens: int, sums: Tensor, index: int) -> Tensor:
    """Output of the token behind the prompt, float32 [query_heads, head_dim]."""
    keys, values = (part[None, :, :tokens].float() for part in (layer.keys, layer.values))
    found = method.select(
        layer.queries[None, :, :tokens].float(),
        keys,
        values,
        index,
        index + 1,
        scaling=layer.scaling,
        column_sums=sums,
    )
    prefix = found.packed(keys, values)
    part = slice(tokens, tokens + 1)
    return kernels.ragged_decode(
        layer.queries[None, :, part].float(),
        prefix,
        layer.keys[None, :, part].float(),
        layer.values[None, :, part].float(),
        layer.scaling,
    )[0, :, 0]


def quartiles(errors: Sequence[float]) -> Quartiles:
    """Quartiles of at least one error, linear between neighbours."""
    points = torch.tensor(errors, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    low, middle, high = points.tolist()
    return Quartiles(low, middle, high, len(errors))


def grouped(errors: Iterable[StepError], *names: str) -> dict[tuple[object, ...], list[StepError]]:
    """Errors by the values of some of their attributes, in order of appearance."""
    groups: dict[tuple[object, ...], list[StepError]] = {}
    for one in errors:
        groups.setdefault(tuple(getattr(one, name) for name in names), []).append(one)
    return groups
