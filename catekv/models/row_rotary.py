"""Rotary frequencies that follow the length, chosen for every row of a batch by itself.

With ``longrope`` and ``dynamic`` scaling transformers chooses one set of frequencies per forward,
by the largest position of the whole batch, and a dynamic model keeps the set of the longest text
that it ever read. A row would then be answered by what stands beside it, or was asked before it.
Here every row gets the frequencies of its own largest position, as it does alone in a new model.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor


def rope_types(module: torch.nn.Module) -> set[str]:
    """Kinds of rotary scaling of a module; none where it is no rotary module of transformers."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return set(kinds.values())
    return {kinds} if isinstance(kinds, str) else set()


def changing(model: torch.nn.Module) -> list[Any]:
    """The rotary modules whose frequencies are not the same for all positions."""
    return [
        module
        for module in model.modules()
        if any(kind == "longrope" or "dynamic" in kind for kind in rope_types(module))
    ]


def install(model: torch.nn.Module) -> None:
    """Let the rotary modules of a model treat the rows of a batch one by one, for good."""
    for module in changing(model):
        before = module.__dict__.get("forward")
        if getattr(before, "__func__", None) is not forward:
            # something else may stand there, e.g. what moves weights between devices
            module.stock_forward = before
            module.forward = types.MethodType(forward, module)


def forward(self: Any, x: Tensor, position_ids: Tensor, *arguments: Any, **options: Any) -> Any:
    """The tables (cosine, sine) of the module's own forward for every row, [batch, tokens, dim].

    Args:
        x: its dtype and device are those of the tables.
        position_ids: int64 [batch, tokens]; other shapes are left to the module.
    """
    stock = self.stock_forward or functools.partial(type(self).forward, self)
    _forget(self)
    if position_ids.ndim != 2 or len(position_ids) == 1:
        return stock(x, position_ids, *arguments, **options)
    kinds = kinds_of_rows(self, position_ids)
    if len(set(kinds)) == 1:
        return stock(x, position_ids, *arguments, **options)
    tables: list[Any] = [None] * len(kinds)
    for kind in set(kinds):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        _forget(self)
        parts = stock(x, position_ids[rows], *arguments, **options)
        for place, row in enumerate(rows):
            tables[row] = [part[place] for part in parts]
    return tuple(torch.stack(column) for column in zip(*tables, strict=True))


def kinds_of_rows(module: Any, positions: Tensor) -> list[tuple[int, ...]]:
    """What the frequencies of each row follow from; rows of one kind share them.

    Args:
        positions: int64 [batch, tokens].
    """
    scalings = _scalings(module)
    return [
        tuple(
            # a dynamic scaling goes on with every token, the other one has two sets
            0 if length <= original else length if dynamic else 1
            for dynamic, original in scalings
        )
        for length in (positions.amax(dim=-1) + 1).tolist()
    ]


def _scalings(module: Any) -> list[tuple[bool, int]]:
    """Per layer type: whether the scaling is dynamic, and the tokens from which on it applies."""
    parameters = module.config.rope_parameters
    of_layers = parameters.values() if isinstance(module.rope_type, dict) else [parameters]
    found = []
    for part in of_layers:
        dynamic = "dynamic" in part["rope_type"]
        if dynamic or part["rope_type"] == "longrope":
            original = module.original_max_seq_len
            if not dynamic:
                original = part["original_max_position_embeddings"]
            found.append((dynamic, int(original)))
    return found


def _forget(module: Any) -> None:
    """Let a dynamic scaling choose as if it had read nothing before."""
    layered = isinstance(module.rope_type, dict)
    named = module.rope_type.items() if layered else [("", module.rope_type)]
    for layer_type, kind in named:
        prefix = f"{layer_type}_" if layered else ""
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if "dynamic" not in kind or original is None:
            continue
        current = getattr(module, f"{prefix}inv_freq")
        if getattr(module, f"{prefix}max_seq_len_cached", None) != module.original_max_seq_len:
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
            setattr(module, f"{prefix}inv_freq", original.to(current.device))
