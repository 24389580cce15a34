"""A plain copy, to measure the bandwidth that other kernels are compared with."""

from __future__ import annotations

from torch import Tensor

#: The kernel reads and writes 16 bytes per thread and instruction, which it may do where sizes are
#: multiples of 16 words.
LINE_BYTES = 64


def copy_torch(destination: Tensor, source: Tensor) -> None:
    """Arguments as in :func:`catekv.kernels.copy`."""
    destination.copy_(source)


def why_no_copy_kernel(destination: Tensor, source: Tensor) -> str | None:
    """Why the triton kernel cannot copy these tensors."""
    if not (destination.is_contiguous() and source.is_contiguous()):
        return "a tensor is not contiguous"
    size = source.numel() * source.element_size()
    if size % LINE_BYTES or destination.data_ptr() % 16 or source.data_ptr() % 16:
        return f"the tensors do not consist of whole lines of {LINE_BYTES} bytes"
    return None
