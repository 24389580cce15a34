"""Rotary embeddings whose frequencies depend on the position, for steps that are recorded.

transformers decides in every forward, on the host, which frequencies of a ``longrope`` model apply:
the short ones up to the original context length, the long ones beyond. A recorded step must not
decide, so it is given the frequencies that hold for its positions, and is recorded again where
others begin to hold.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from catekv.cache.attention import ModuleView
from catekv.models.row_rotary import changing, kinds_of_rows, rope_types

#: Only one thread at a time may exchange the forwards of a model's rotary embeddings.
_lock = threading.RLock()


def why_not_fixed(model: torch.nn.Module, positions: Tensor | None = None) -> str | None:
    """Why the frequencies cannot be fixed for a stretch of positions; None if they can.

    Args:
        positions: int64 [batch, tokens] to fix them for, if that is known.
    """
    for module in changing(model):
        name = type(module).__name__
        if getattr(module, "rope_type", None) != "longrope":
            kinds = ", ".join(sorted(rope_types(module)))
            return f"{name} ({kinds}) computes its frequencies anew on the host in every forward"
        plain = inspect.unwrap(type(module).forward)
        if plain is type(module).forward or not isinstance(
            getattr(module, "inv_freq", None), Tensor
        ):
            return f"{name} (longrope) is not built as in the supported transformers releases"
        if positions is not None and len(set(kinds_of_rows(module, positions))) > 1:
            return "some sequences are longer than the original context length, others are not"
    return None


def boundaries(model: torch.nn.Module) -> list[int]:
    """First positions of the stretches with other frequencies than the positions before, in order;
    none where the frequencies never change or cannot be fixed."""
    if why_not_fixed(model) is not None:
        return []
    return sorted(
        int(module.config.rope_parameters["original_max_position_embeddings"])
        for module in changing(model)
    )


@contextlib.contextmanager
def fixed_frequencies(model: Any, positions: Tensor) -> Iterator[list[Tensor]]:
    """Within it this thread's forwards use the frequencies of ``positions`` and decide nothing.

    Args:
        positions: int64 [batch, tokens], on the model's device.

    Yields:
        The frequencies in use, which a recording must keep alive.
    """
    owner = threading.get_ident()
    modules = changing(model)
    with _lock:
        originals = [module.__dict__.get("forward") for module in modules]
        frequencies = []
        try:
            for module in modules:
                # an ordinary forward at these positions chooses the frequencies
                module(torch.empty(1, dtype=model.dtype, device=positions.device), positions)
                # a copy: other forwards exchange or overwrite the module's own
                frequencies.append(module.inv_freq.clone())
                plain = inspect.unwrap(type(module).forward)
                view = ModuleView(module, inv_freq=frequencies[-1])
                module.forward = _fixed(module.forward, plain, view, owner)
            yield frequencies
        finally:
            for module, original in zip(modules, originals, strict=True):
                if original is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = original


def _fixed(forward: Any, plain: Any, view: ModuleView, owner: int) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != owner:
            return forward(*arguments, **options)
        return plain(view, *arguments, **options)

    return run
