"""Every kernel that these tests run in triton's interpreter is watched."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest
from sanitiser import sanitised

from catekv.kernels.dispatch import has_triton


@pytest.fixture(autouse=True)
def _kernels_are_sanitised(request: pytest.FixtureRequest) -> Iterator[None]:
    """Accesses are checked, and programs run in an order drawn from the test's name."""
    if not has_triton() or os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    with sanitised(zlib.crc32(request.node.nodeid.encode())):
        yield
