"""The one test that is left where there is no device."""

from __future__ import annotations

import gpu
import pytest
import torch


def test_there_is_a_device() -> None:
    if not gpu.available():
        pytest.skip("no CUDA device: nothing under test/gpu was run")
    assert torch.ones(3, device=gpu.DEVICE).sum().item() == 3
