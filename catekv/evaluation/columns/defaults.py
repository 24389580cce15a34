"""Default options per model: the published ones, and smaller ones for the embedded model.

The published options are made for 128K tokens: a budget of 2048 with 64 initial and 256 recent
tokens. At the 1024 to 4096 tokens of the embedded model they would keep everything, so that model
gets proportionally smaller ones. This is the only place that says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catekv.models.embedded import shipped

#: CateKV on the embedded model: 12.5 % of 1024 tokens in a consistent head, 3.1 % of 4096.
EMBEDDED_BUDGET = 128
EMBEDDED_INIT_TOKENS = 16
EMBEDDED_RECENT_TOKENS = 32
EMBEDDED_WINDOW = 32

_EMBEDDED: dict[str, dict[str, Any]] = {
    "catekv": {"budget": EMBEDDED_BUDGET},
    "snapkv": {"window": EMBEDDED_WINDOW},
    "streaming_llm": {"sinks": EMBEDDED_INIT_TOKENS},
}

#: Baselines as the CateKV paper ran them (section "baseline settings").
_PAPER: dict[str, dict[str, Any]] = {
    "snapkv": {"window": 32},
    "streaming_llm": {"sinks": 128},
}

#: RULER tasks of the embedded model's vocabulary that its table is made of
EMBEDDED_TASKS = (
    "ruler/niah_single_1",
    "ruler/niah_single_2",
    "ruler/niah_multikey_1",
    "ruler/niah_multikey_2",
    "ruler/niah_multiquery",
    "ruler/niah_multivalue",
    "ruler/vt",
    "ruler/vt_dense",
    "ruler/fwe",
)
EMBEDDED_LENGTH = 1024
EMBEDDED_SAMPLES = 20


def method_defaults(embedded: bool) -> dict[str, dict[str, Any]]:
    """Options per method name that hold unless the user sets them."""
    return short_prompts() if embedded else _copy(_PAPER)


def short_prompts() -> dict[str, dict[str, Any]]:
    """Options per method name that compress prompts of about 1024 tokens, on any model."""
    return _copy(_EMBEDDED)


def _copy(source: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(options) for name, options in source.items()}


def mask_edges(embedded: bool) -> dict[str, int]:
    """Edges and window of masks that do not say with which they were made."""
    if not embedded:
        return {}
    return {
        "init_tokens": EMBEDDED_INIT_TOKENS,
        "recent_tokens": EMBEDDED_RECENT_TOKENS,
        "window": EMBEDDED_WINDOW,
    }


def calibration_edges(embedded: bool, budget: int | None) -> dict[str, int]:
    """Edges and window of a calibration, as far as the budget does not decide them."""
    edges = mask_edges(embedded)
    least = EMBEDDED_INIT_TOKENS + EMBEDDED_RECENT_TOKENS
    return {} if (budget or EMBEDDED_BUDGET) < least else edges


def shipped_masks(name: str) -> Path | None:
    """Folder of the head masks of a model, found by the model's name; None if there is none.

    Looked for, in this order: ``select_headmask/NAME`` of the project (``chosen`` in it if there
    is such a folder), then ``results/headmask-NAME/chosen``, where `catekv calibrate` writes.
    """
    ours = shipped(f"select_headmask/{name}")
    for folder in (ours / "chosen", ours, Path("results") / f"headmask-{name}" / "chosen"):
        if folder.is_dir():
            return folder
    return None
