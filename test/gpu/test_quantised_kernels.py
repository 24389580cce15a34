"""Decode attention over codes, in every form, against its definition in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu import DEVICE, HALVES, TINY, TOLERANCE, TYPES, relative_error, short_name
from test_decode_kernels import BATCH, DECODE, KV_HEADS, Form, make_prefix, options_of
from torch import Tensor

from catekv import kernels
from catekv.kernels.codes import FORMS
from catekv.kernels.quantised import quantised

#: Rows of every kind: none, one entry, a residual alone, codes and a broken group, one much longer.
ROWS = [0, 1, 95, 100, 64, 170] if TINY else [0, 1, 95, 5000, 128, 60000]
HEAD_DIMS = (64,) if TINY else (64, 96, 128, 256)
OTHERS = (
    Form("padding in the tail", tail=64, used=33, masked=True),
    Form("bias", tail=64, used=9, biased=True),
    Form("soft cap and sinks", tail=64, used=9, capped=True, sinks=True),
    Form("question", query_tokens=9, tail=30, masked=True),
)
CASES = [
    *((dtype, dim, DECODE) for dtype in TYPES for dim in HEAD_DIMS),
    *((HALVES[0], HEAD_DIMS[-2:][0], form) for form in (OTHERS[1:2] if TINY else OTHERS)),
]


@pytest.mark.parametrize("bits", FORMS)
@pytest.mark.parametrize(("dtype", "head_dim", "form"), CASES, ids=short_name)
def test_codes_are_read_as_they_are_defined(
    dtype: torch.dtype, head_dim: int, form: Form, bits: str
) -> None:
    prefix = quantised(make_prefix(ROWS, KV_HEADS, head_dim, dtype, form.biased), bits)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    queries = draw(BATCH, KV_HEADS * 4, form.query_tokens, head_dim)
    tails = [draw(BATCH, KV_HEADS, form.tail, head_dim) for _ in "kv"]
    options = options_of(form, tails, KV_HEADS * 4)
    scaling = head_dim**-0.5

    def run(backend: str, **more: Any) -> Tensor:
        return kernels.ragged_decode(
            queries, prefix, *tails, scaling, backend=backend, **options, **more
        )

    wanted = kernels.ragged_decode(
        queries.float(), prefix, *(tail.float() for tail in tails), scaling, backend="reference",
        **options,
    )  # fmt: skip
    workspace = kernels.Workspace()
    first = run("triton", workspace=workspace)
    for tensor in workspace.tensors():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    assert torch.equal(first, run("triton", workspace=workspace)), "depends on scratch memory"
    assert relative_error(first, wanted) <= TOLERANCE[dtype]
    assert relative_error(run("torch"), wanted) <= TOLERANCE[dtype]
