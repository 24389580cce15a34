"""A kernel in two files: the table of implementations follows from their names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels import dispatch


@pytest.fixture
def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "twice.py").write_text("def twice_torch(x):\n    return 2 * x\n")
    (tmp_path / "twice_triton.py").write_text("def twice_triton(x):\n    return x + x\n")
    monkeypatch.setattr(kernels, "__path__", [*kernels.__path__, str(tmp_path)])
    dispatch.table.cache_clear()
    yield
    monkeypatch.undo()
    dispatch.table.cache_clear()
    dispatch._load.cache_clear()
    dispatch._launching.cache_clear()
    for name in ("twice", "twice_triton"):
        sys.modules.pop(f"catekv.kernels.{name}", None)


@pytest.mark.usefixtures("twice")
def test_two_files_are_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.table()["twice"] == {
        "torch": "catekv.kernels.twice",
        "triton": "catekv.kernels.twice_triton",
    }
    assert kernels.backends("twice") == ["torch", "triton"]
    cpu = torch.device("cpu")
    assert dispatch.choose("twice", cpu)(3) == 6
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert dispatch.choose("twice", cpu, "triton").__name__ == "twice_triton"
    with pytest.raises(UserError, match="cannot run here: too small; use auto"):
        dispatch.choose("twice", cpu, "triton", unsupported="too small")


def test_the_kernels_that_are_here() -> None:
    both = {
        kernel: ["torch", "triton"]
        for kernel in ("append", "copy", "pack", "page_bounds", "page_scores", "window_scores",
                       "window_statistics")
    }  # fmt: skip
    expected = {
        **both,
        "column_sums": ["torch"],
        "ragged_decode": ["reference", "torch", "triton"],
    }
    found = {name: sorted(row) for name, row in dispatch.table().items()}
    assert {**found, **expected} == found
