"""Fixtures shared by all tests: the reference numbers, real third-party files, tiny models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# kernels run in triton's interpreter, which must be chosen before any module with kernels loads
os.environ.setdefault("TRITON_INTERPRET", "1")

REFERENCE_VARIABLE = "CATEKV_REFERENCE"


def pytest_configure() -> None:
    # the tensors of all tests are tiny: a second thread only waits for the first
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Folder with ``golden/*.json`` and ``data/``; tests that need it say so when it is absent."""
    value = os.environ.get(REFERENCE_VARIABLE)
    if not value or not Path(value).is_dir():
        pytest.skip(f"set {REFERENCE_VARIABLE} to the folder with golden/ and data/ to run this")
    return Path(value)


@pytest.fixture(scope="session")
def golden(reference_folder: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """``golden("catekv", "layout")``: all cases of one kind in one reference file."""

    def cases(system: str, kind: str) -> list[dict[str, Any]]:
        content = json.loads((reference_folder / "golden" / f"{system}.json").read_text())
        found = [case for case in content["cases"] if case["kind"] == kind]
        assert found, f"no case of kind {kind!r} in golden/{system}.json"
        return found

    return cases
