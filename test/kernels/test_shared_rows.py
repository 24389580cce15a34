"""Rows of several sequences that share one stored row: what a batch of coalitions reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catekv import kernels
from catekv.calibration.cokv.coalitions import _shared_prefix
from catekv.kernels.dispatch import has_triton
from catekv.kernels.ragged_decode import ragged_decode_reference, ragged_decode_torch

HEADS, STORED, WINDOW = 4, 35, 3


def decoders() -> list[str]:
    return ["torch", "triton"] if has_triton() else ["torch"]


@pytest.mark.parametrize("kind", decoders())
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_heads_read_the_shared_rows_or_none(kind: str, share: float) -> None:
    torch.manual_seed(0)
    batch, group, dim = 3, 2, 16
    keys, values = torch.randn(2, 1, HEADS, STORED + WINDOW, dim).unbind()
    chosen = np.random.default_rng(1).random((batch, HEADS)) < share
    prefix = _shared_prefix(keys, values, chosen, STORED)
    assert prefix.keys.data_ptr() == keys.data_ptr()
    queries = torch.randn(batch, HEADS * group, 1, dim)
    tail_keys, tail_values = torch.randn(2, batch, HEADS, WINDOW + 1, dim).unbind()
    arguments = (queries, prefix, tail_keys, tail_values, 0.25)
    decode = ragged_decode_torch
    if kind == "triton":
        from catekv.kernels.ragged_decode_triton import ragged_decode_triton as decode
    torch.testing.assert_close(
        decode(*arguments), ragged_decode_reference(*arguments), atol=2e-6, rtol=0
    )
    assert kernels.ragged_decode(*arguments).shape == queries.shape
