"""Where the time of a step goes: the attention kernel, and everything else.

Two further measurements on the same cache and clock: the attention alone, called for every layer
behind each other, and the step of the whole model with an attention function that returns its
queries. The difference between the step and their sum is what neither of them has: waiting between
kernels, and caches that one leaves cold or warm for the other.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from catekv import kernels
from catekv.cache.attention import HANDLE
from catekv.evaluation.efficiency.clock import capture, step_times
from catekv.evaluation.efficiency.fill import fill_random_
from catekv.evaluation.efficiency.measurement import Measurement
from catekv.evaluation.efficiency.variants import RaggedStepper, Setting
from catekv.models.compat import attention_named

_NAME = "catekv_nothing"
RUNS = 5
TAIL = 32


def attention_seconds(setting: Setting, stepper: RaggedStepper) -> float:
    """Median time of the decode attention of all layers."""
    model, batch = setting.model, setting.batch
    shape, dtype, device = model.shape, model.dtype, model.device
    workspace = kernels.Workspace()
    work = []
    for layer in stepper.cache.ragged_layers:
        queries = torch.empty(
            batch, shape.query_heads, 1, shape.head_dim, dtype=dtype, device=device
        )
        tail = torch.empty(batch, shape.kv_heads, TAIL, shape.head_dim, dtype=dtype, device=device)
        length = torch.full((1,), TAIL, dtype=torch.int32, device=device)
        work.append((layer, fill_random_(queries), fill_random_(tail), length))

    def attend() -> Tensor:
        output = work[0][1]
        for layer, queries, tail, length in work:
            prefix: Any = layer.prefix
            blocks = None
            if layer.store is not None:
                prefix, blocks = layer.store.read(queries, layer.scaling, workspace)
            output = kernels.ragged_decode(
                queries,
                prefix,
                tail,
                tail,
                layer.scaling,
                form=layer.form,
                tail_length=length,
                blocks=blocks,
                workspace=workspace,
            )
        return output

    attend()
    run, _ = capture(attend, model.device)
    run()
    return statistics.median(step_times(run, RUNS, model.device)[0])


def _nothing(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    handle = getattr(key, HANDLE, None)
    if handle is not None:
        handle.layer.attended()
    return query.transpose(1, 2).contiguous(), None


def rest_seconds(setting: Setting, stepper: RaggedStepper) -> float:
    """Median time of a step whose attention returns its queries."""
    with attention_named(setting.model.model, _NAME, _nothing):
        other = RaggedStepper(setting, stepper.cache.fork())
        for _ in range(2):
            other.step()
        return statistics.median(step_times(other.step, RUNS, setting.model.device)[0])


def note_breakdown(setting: Setting, stepper: RaggedStepper, row: Measurement) -> None:
    """Put both times into the row, where a layer is read by the project's attention at all."""
    if not stepper.cache.ragged_layers:
        return
    row.attention_seconds = attention_seconds(setting, stepper)
    row.rest_seconds = rest_seconds(setting, stepper)
