"""Tests that need a CUDA device: ``python -m pytest -m gpu test/gpu``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gpu
import pytest
import torch

HERE = Path(__file__).parent
# nothing else is even imported where there is no device
collect_ignore = (
    []
    if gpu.available()
    else [path.name for path in HERE.glob("test_*.py") if path.name != "test_device.py"]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def device() -> Iterator[None]:
    """The pretended one, where that was asked for: models live longer than a test."""
    if not gpu.PRETENDED:
        yield
        return
    from pretend_cuda import pretend_cuda

    with pretend_cuda():
        yield


@pytest.fixture(autouse=True)
def other_numbers() -> None:
    """Other random numbers in every run; a failure says which."""
    print(f"torch.manual_seed({torch.seed()})")
