"""Tests that need a CUDA device: ``python -m pytest -m gpu test/gpu``."""

from __future__ import annotations

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


@pytest.fixture(autouse=True)
def other_numbers() -> None:
    """Other random numbers in every run; a failure says which."""
    print(f"torch.manual_seed({torch.seed()})")
