"""How much memory devices have: known ones by name, this machine's by asking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catekv.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What a plan needs of a device.

    Attributes:
        name: as it is written on the command line, or what this machine calls it.
        kind: ``cuda`` or ``cpu``: which temporaries a prefill makes there.
        memory_bytes: all of it, as torch reports it (less than the name says).
        bandwidth: bytes per second of its memory; None where nobody wrote it down.
    """

    name: str
    kind: str
    memory_bytes: int
    bandwidth: float | None = None


#: Memory as torch reports it (``total_memory``), bandwidth as the makers state it.
DEVICES = {
    name: Device(name, "cuda", int(gib * GIB), bandwidth)
    for name, gib, bandwidth in (
        ("rtx4090-24g", 23.5, 1.008e12),
        ("l40s-48g", 44.4, 0.864e12),
        ("a100-40g", 39.4, 1.555e12),
        ("a100-80g", 79.15, 2.039e12),
        ("h100-80g", 79.1, 3.35e12),
        ("h200-141g", 139.8, 4.8e12),
    )
}

_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def read_bytes(text: str) -> int:
    """A size as somebody writes it: ``80GiB``, ``24 GB``, ``512MiB``; a bare number is GiB.

    Raises:
        UserError: no number, an unknown unit, or nothing left.
    """
    squeezed = text.replace(" ", "").lower()
    digits = squeezed.rstrip("bkmgti")
    unit = squeezed[len(digits) :] or "gib"
    try:
        size = float(digits) * _UNITS[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not 1 <= size < float("inf"):
        raise UserError(f"{text!r} is no size of memory; write a number and a unit, as in 80GiB")
    return int(size)


def find_device(name: str) -> Device:
    """A device by name, or ``auto``: the first CUDA device here, else this machine's memory.

    Raises:
        UserError: unknown name (the known ones are listed), or nobody can tell how much there is.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name != "auto":
        raise UserError(f"unknown device {name!r}; use auto, {', '.join(DEVICES)}")
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        size = int(properties.total_memory)
        return Device(properties.name, "cuda", size, _bandwidth(properties.name, size))
    total = _meminfo("MemTotal")
    if total is None:
        raise UserError(
            "this system does not say how much memory it has; give --device-memory, as in 80GiB"
        )
    return Device("this machine", "cpu", total)


def _bandwidth(name: str, memory_bytes: int) -> float | None:
    """Bandwidth of a device of the list that this one is, by name and size."""
    words = name.lower()
    for device in DEVICES.values():
        model = device.name.partition("-")[0].removeprefix("rtx")
        alike = abs(device.memory_bytes - memory_bytes) < 0.02 * memory_bytes
        # cards for PCIe carry the name of the module and have slower memory
        if model in words and alike and "pcie" not in words:
            return device.bandwidth
    return None


def _meminfo(name: str) -> int | None:
    """A line of the kernel's memory statistics in bytes; None on systems without them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def free_memory_bytes(device: str) -> int | None:
    """Bytes that may still be allocated on ``device``; None where nobody can tell."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        index = torch.device(device)
        free, _ = torch.cuda.mem_get_info(index)
        # what the caching allocator holds but nobody uses
        reusable = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return int(free + reusable)
    return _meminfo("MemAvailable")
