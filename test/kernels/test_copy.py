"""The copy that bandwidth is measured with."""

from __future__ import annotations

import pytest
import torch

from catekv import kernels
from catekv.errors import UserError


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_byte_arrives_and_none_besides(backend: str, dtype: torch.dtype):
    source = torch.randn(3, 1056, generator=torch.Generator().manual_seed(0)).to(dtype)
    room = torch.zeros(5, 1056, dtype=dtype)
    kernels.copy(room[1:4], source, backend=backend)
    assert torch.equal(room[1:4], source)
    assert not room[[0, 4]].any()


def test_what_is_no_whole_line_is_left_to_torch():
    source = torch.arange(7.0)
    with pytest.raises(UserError, match="whole lines of 64 bytes"):
        kernels.copy(torch.empty(7), source, backend="triton")
    target = torch.empty(7)
    kernels.copy(target, source)
    assert torch.equal(target, source)
