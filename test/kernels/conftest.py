"""Kernels run in triton's interpreter here, which must be chosen before a kernel module loads."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
