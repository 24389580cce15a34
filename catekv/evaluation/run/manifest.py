"""What a run directory says about the run: configuration, methods, versions, every start."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from catekv.evaluation.columns.settings import MethodSpec, RunSettings
from catekv.evaluation.plugins import loaded_plugins
from catekv.evaluation.records import environment
from catekv.evaluation.run import sanity
from catekv.evaluation.run.cells import Cell
from catekv.methods.head_mask import HeadMask


def make_manifest(settings: RunSettings, cells: Sequence[Cell], command: str) -> dict[str, Any]:
    """What a reader needs to know to repeat the run.

    ``methods`` are the columns: the methods, and under labels in brackets the validity checks.
    """
    columns = {
        spec.label: {
            "hash": settings.method_hash(spec),
            "name": spec.name,
            "options": spec.to_dict(),
            "mask": _mask_origin(spec),
        }
        for spec in settings.methods
    }
    if settings.sanity:
        columns |= sanity.columns(settings)
    return {
        "format": 1,
        "model": settings.model,
        "config_hash": settings.config_hash,
        "configuration": settings.configuration(),
        "paper": settings.paper,
        "suite": settings.suite,
        "tasks": list(dict.fromkeys(cell.task for cell in cells)),
        "lengths": list(dict.fromkeys(cell.length for cell in cells)),
        "samples": settings.samples,
        "questions": list(settings.questions),
        "methods": columns,
        "prefill": settings.prefill,
        "chunk_size": settings.chunk_size,
        "batch_size": settings.batch_size,
        "data": _data(cells),
        "warnings": [warning for cell in cells for warning in cell.warnings],
        "versions": environment.versions(),
        "plugins": loaded_plugins(),
        "git_commit": environment.git_commit(),
        "device": environment.device_description(settings.device),
        "starts": [
            {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "command": command,
            }
        ],
    }


def _data(cells: Sequence[Cell]) -> dict[str, str]:
    """Where the rows of every task come from, as their samples say."""
    found = {cell.task: cell.first.metadata.get("data") for cell in cells}
    return {task: str(data) for task, data in found.items() if data}


def _mask_origin(spec: MethodSpec) -> dict[str, Any] | None:
    """Where a method's head mask comes from; its heads are among the options."""
    mask = spec.options.get("head_mask")
    return dict(mask.meta) if isinstance(mask, HeadMask) else None
