"""Fixtures shared by all tests: the reference numbers, and published files where there are any."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# the commands that tests start compute tiny tensors too, and several run at a time
os.environ.setdefault("OMP_NUM_THREADS", "1")

PUBLISHED_VARIABLE = "CATEKV_REFERENCE"


def pytest_configure(config: pytest.Config) -> None:
    # kernels run in triton's interpreter, which must be chosen before any module with kernels loads
    if config.option.markexpr != "gpu" or not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # the tensors of all tests are tiny: a second thread only waits for the first
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """Collecting garbage, which the library does where it gives memory back, need not look through
    all of torch and transformers each time (half a second)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _pictures_are_drawn_where_they_are_looked_at(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drawing them is most of a short run's time; tests named after reports draw them."""
    with pytest.MonkeyPatch.context() as patch:
        if "report" not in request.path.name:
            patch.setattr("catekv.evaluation.report.pictures.Drawing.svg", lambda *_: "<svg></svg>")
        yield


def pytest_unconfigure() -> None:
    # or libraries complain at the end that their objects were never let go
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Checks on published files, which may not be given away, are left out where there are none."""
    if os.environ.get(PUBLISHED_VARIABLE):
        return
    extra = [item for item in items if "published_files" in getattr(item, "fixturenames", ())]
    if extra:
        config.hook.pytest_deselected(items=extra)
        items[:] = [item for item in items if item not in extra]


@pytest.fixture(scope="session")
def published_files() -> Path:
    """Folder with published benchmark files; a test that asks for it runs only where it is named.

    Every such test has a companion on rows of our own.
    """
    folder = Path(os.environ[PUBLISHED_VARIABLE]) / "data"
    if not folder.is_dir():
        pytest.fail(f"{PUBLISHED_VARIABLE}: there is no folder {folder}; unset it to go without")
    return folder


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Folder of the reference numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """``golden("catekv", "layout")``: all cases of one kind in one reference file."""

    def cases(system: str, kind: str) -> list[dict[str, Any]]:
        content = json.loads((golden_folder / f"{system}.json").read_text(encoding="utf-8"))
        found = [case for case in content["cases"] if case["kind"] == kind]
        assert found, f"no case of kind {kind!r} in golden/{system}.json"
        return found

    return cases
