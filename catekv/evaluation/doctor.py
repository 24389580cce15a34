"""What a bug report needs: versions, devices, and which optional parts are there."""

from __future__ import annotations

import importlib.util
import os

from catekv.errors import UserError
from catekv.evaluation import environment

_EXTRAS = {
    "gpu": ("triton",),
    "report": ("matplotlib",),
    "ray": ("ray",),
    "api": ("httpx",),
    "dev": ("pytest", "ruff", "mypy"),
}


def describe() -> str:
    """Versions, devices, extras and the embedded model, one per line."""
    import torch

    lines = [f"{name:<14}{version}" for name, version in environment.versions().items()]
    lines.append(f"{'commit':<14}{environment.git_commit() or 'not a clone'}")
    lines.append(f"{'cpu':<14}{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    free = environment.free_memory_bytes("cpu")
    lines.append(
        f"{'free memory':<14}{free / 1024**3:.1f} GiB" if free else "free memory   unknown"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = environment.device_description(f"cuda:{index}")
            lines.append(
                f"{f'cuda:{index}':<14}{device['name']}, {device['memory_bytes'] / 1024**3:.0f} GiB"
            )
    else:
        lines.append(f"{'cuda':<14}none")
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        state = f"missing {', '.join(missing)}" if missing else "installed"
        lines.append(f"{f'extra {extra}':<14}{state}")
    lines.append(f"{'embedded':<14}{_embedded()}")
    return "\n".join(lines)


def _embedded() -> str:
    from catekv import embedded

    try:
        return str(embedded.path())
    except UserError as error:
        return str(error)
