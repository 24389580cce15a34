"""Which tokens CateKV always kept, as a line under a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_USED = frozenset({"budget", "init_tokens", "recent_tokens", "window"})


def edge_notes(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Budget, edges and window of every CateKV column; columns that have the same share a line.

    Args:
        methods: label -> name and options of a column, as :meth:`MethodSpec.to_dict` writes them.
    """
    labels: dict[str, list[str]] = {}
    for label, options in methods.items():
        if options.get("name") == "catekv" and _USED.issubset(options):
            labels.setdefault(_said(options), []).append(label)
    return [f"{', '.join(names)}: {said}." for said, names in labels.items()]


def _said(options: Mapping[str, Any]) -> str:
    kept = f"budget {options['budget']}"
    if options.get("retention_range") == "middle":
        kept += (
            f", of it the first {options['init_tokens']} and the last "
            f"{options['recent_tokens']} tokens"
        )
    return f"{kept}; window {options['window']}"
