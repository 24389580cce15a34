"""What a manifest must say about where a result comes from: versions, commit, device, weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from catekv.models.embedded import clone
from catekv.models.source import SUFFIX
from catekv.prefill.devices import free_memory_bytes as free_memory_bytes
from catekv.version import __version__

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", SUFFIX)
_SAMPLE_BYTES = 1 << 20


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"catekv": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "numpy", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Commit of the source tree this package runs from, with ``+changes`` where it was edited."""
    root = clone()
    if root is None or not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return result.stdout.strip()


def device_description(device: str) -> dict[str, Any]:
    """Name and size of the device in words and numbers."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.device(device))
        return {
            "kind": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return {
        "kind": device,
        "name": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def model_identity(folder: str | Path, revision: str | None = None) -> str:
    """Hash that tells two sets of weights apart.

    Args:
        folder: local model folder, or a local GGUF file. Config, tokenizer and weight files are
            hashed; of a weight file above 2 MiB the first and last MiB and the size, so that 16 GB
            need no minute.
        revision: commit of a hub model, used when ``folder`` is nothing local.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        return f"hub:{folder}@{revision or 'unknown'}"
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        is_weight = file.suffix.lower() in _WEIGHT_SUFFIXES
        if not is_weight and not file.name.endswith(("config.json", "tokenizer.json")):
            continue
        size = file.stat().st_size
        # a single file is the same model under any name
        digest.update(f"{'' if file == path else file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if is_weight and size > 2 * _SAMPLE_BYTES:
                digest.update(stream.read(_SAMPLE_BYTES))
                stream.seek(-_SAMPLE_BYTES, 2)
            digest.update(stream.read())
    return digest.hexdigest()[:16]
