"""Cache layers that transformers keeps in its own way: windows, recurrent and convolutional states.

They hold no entries that a method could choose among. What they hold of a prompt stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Attributes with the states of a linear-attention (recurrent, convolutional) layer.
_STATES = ("conv_states", "recurrent_states")


def has_states(layer: Any) -> bool:
    """Whether a layer keeps recurrent or convolutional states (beside keys and values or alone)."""
    return any(hasattr(layer, name) for name in _STATES)


def has_entries(layer: Any) -> bool:
    """Whether a layer stores keys and values of single tokens."""
    return hasattr(layer, "get_seq_length")


def depends_on_order(layer: Any) -> bool:
    """Whether it counts which columns lie between two tokens, so that padding among them shows."""
    return has_states(layer) or bool(getattr(layer, "is_sliding", False))


def kind_of(layer: Any) -> str:
    """What a layer is, in words for messages."""
    window = getattr(layer, "is_sliding", False)
    if has_states(layer):
        if not has_entries(layer):
            return "linear attention"
        return "linear attention beside " + ("a sliding window" if window else "full attention")
    if window:
        return "sliding window"
    return "full attention of its own kind" if has_entries(layer) else "no cache"


def described(layers: Iterable[Any], indices: Sequence[int]) -> str:
    """For messages: ``layers 0, 2 (sliding window), 3 (linear attention)``."""
    held = list(layers)
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(kind_of(held[index]), []).append(index)
    parts = [f"{', '.join(map(str, found))} ({kind})" for kind, found in groups.items()]
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(parts)}"


def tensors_of(layer: Any) -> list[Tensor]:
    """All tensors that a layer holds."""
    found: list[Tensor] = []
    for value in vars(layer).values():
        values: Iterable[Any] = [value]
        if isinstance(value, dict):
            values = value.values()
        elif isinstance(value, list | tuple):
            values = value
        found += [item for item in values if isinstance(item, Tensor) and item.ndim > 0]
    return found


def state_bytes(layer: Any) -> int:
    """Bytes of the states, which do not grow with the number of tokens."""
    return sum(
        state.nbytes
        for name in _STATES
        for state in getattr(layer, name, {}).values()
        if state is not None
    )


def entry_lengths(layer: Any, batch: int) -> Tensor:
    """Stored tokens, int64 [batch, kv_heads]; no heads where none are stored."""
    keys = getattr(layer, "keys", None)
    if keys is None or keys.ndim < 3:
        return torch.zeros(batch, 0, dtype=torch.int64)
    return torch.full(keys.shape[:2], keys.shape[2], dtype=torch.int64)


def batch_of(layer: Any) -> int | None:
    """Sequences that a layer holds; None if it was fed nothing."""
    return next((len(tensor) for tensor in tensors_of(layer) if tensor.ndim > 1), None)


def select_rows(layer: Any, rows: Tensor) -> None:
    """Keep the sequences ``rows`` int64 [n] of the batch, in this order; they may repeat."""
    batch = batch_of(layer)
    states = [
        (held, name, state)
        for held in _dictionaries(layer)
        for name, state in held.items()
        if isinstance(state, Tensor) and state.ndim > 1 and len(state) == batch
    ]
    # transformers has no other operation on the batch that all of its layers know
    layer.reorder_cache(rows)
    for held, name, state in states:
        # older releases forget what DeepSeek V4 gathers
        if held[name] is state:
            held[name] = state.index_select(0, rows.to(state.device))


def copied(layer: Any) -> Any:
    """A layer in the same state that may be fed independently."""
    # keys and values are replaced when tokens come, states and dictionaries are written into
    return copy.deepcopy(layer) if _dictionaries(layer) else copy.copy(layer)


def _dictionaries(layer: Any) -> list[dict[Any, Any]]:
    """Where a layer keeps states by name: recurrent and convolutional ones, and blocks."""
    return [value for value in vars(layer).values() if isinstance(value, dict)]
