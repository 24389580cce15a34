"""The gates of KVzap on disk, in the layout that they were published in.

``config.json``: ``input_dim`` (hidden size), ``output_dim`` (KV heads), ``hidden_dim`` (null: one
linear layer) and ``n_modules`` (layers), and where this package trained them ``meta``.
``model.safetensors``: for every layer l ``layers.l.weight`` and ``.bias``, or with hidden units
``layers.l.0.*`` and ``layers.l.2.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_object, read_tensors, write_tensors
from catekv.models.finite import refuse_diverged

CONFIG_FILE, TENSOR_FILE = "config.json", "model.safetensors"
#: Tokens whose states are held in float32 at once: 32 MiB of 4096 numbers.
_BLOCK = 2048

#: Weight [outputs, inputs] and bias [outputs] of one linear layer.
Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Gates:
    """One network per layer of a model: a linear layer, or two with an exact GELU between them.

    ``meta``: how they were trained; plain values.
    """

    layers: tuple[tuple[Linear, ...], ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int, int | None]:
        """Inputs, outputs and hidden units (None: there are none) of every network."""
        first, last = self.layers[0][0][0], self.layers[0][-1][0]
        return first.shape[1], last.shape[0], None if first is last else first.shape[0]

    def scores(self, layer: int, states: Tensor) -> Tensor:
        """Of states [batch, tokens, hidden_size] float32 [batch, kv_heads, tokens]."""
        network = [tuple(part.to(states.device) for part in one) for one in self.layers[layer]]
        found = []
        for part in states.split(_BLOCK, dim=1):
            outputs = part.float()
            for index, (weight, bias) in enumerate(network):
                outputs = F.linear(F.gelu(outputs) if index else outputs, weight, bias)
            found.append(outputs)
        return torch.cat(found, dim=1).transpose(1, 2)

    def save(self, folder: Path | str) -> None:
        """Write the folder; ``UserError`` if it cannot be written, or values are not finite."""
        folder = Path(folder)
        tensors = {}
        for index, network in enumerate(self.layers):
            for place, name in enumerate(_names(index, len(network) > 1)):
                for kind, tensor in zip(("weight", "bias"), network[place], strict=True):
                    tensors[f"{name}.{kind}"] = tensor.detach().float().cpu().contiguous()
        refuse_diverged(tensors, "the gates")
        inputs, outputs, hidden = self.sizes
        config = {
            "model_type": "kvzap", "input_dim": inputs, "output_dim": outputs,
            "hidden_dim": hidden, "n_modules": len(self.layers), "meta": self.meta,
        }  # fmt: skip
        write_tensors(folder / TENSOR_FILE, tensors, folder / CONFIG_FILE, config, "the gates")

    @classmethod
    def load(cls, folder: Path | str) -> Gates:
        """Read a folder; ``UserError`` if there is none, or something else in it."""
        folder = Path(folder)
        try:
            config = read_object(folder / CONFIG_FILE)
            tensors = read_tensors(folder / TENSOR_FILE)
        except UserError as error:
            raise UserError(
                f"{folder} holds no KVzap gates: {error}; download published ones into a folder, "
                "or train some with `catekv kvzap train`"
            ) from error
        try:
            hidden = config["hidden_dim"]
            widths = [
                config["input_dim"],
                *([] if hidden is None else [hidden]),
                config["output_dim"],
            ]
            layers = tuple(
                _network(tensors, _names(index, hidden is not None), [int(w) for w in widths])
                for index in range(int(config["n_modules"]))
            )
            if not layers:
                raise ValueError("no layers")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the KVzap gates in {folder} are damaged or of another kind: {error}; download or "
                "train them again"
            ) from error
        return cls(layers, dict(config.get("meta") or {}))


def untrained_gates(sizes: tuple[int, int], layers: int, seed: int) -> Gates:
    """Random linear gates for (hidden size, KV heads), to try the method with."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = sizes
    weights = torch.randn(layers, outputs, inputs, generator=generator) / inputs**0.5
    return Gates(tuple(((weight, torch.zeros(outputs)),) for weight in weights))


def _network(
    tensors: Mapping[str, Tensor], names: Sequence[str], widths: Sequence[int]
) -> tuple[Linear, ...]:
    """The linear layers of one network; ``ValueError`` for another shape or what is no number."""
    parts = []
    for name, inputs, outputs in zip(names, widths[:-1], widths[1:], strict=True):
        weight, bias = (tensors[f"{name}.{kind}"].float() for kind in ("weight", "bias"))
        if [*weight.shape, *bias.shape] != [outputs, inputs, outputs]:
            raise ValueError(f"{name} is {list(weight.shape)} instead of {[outputs, inputs]}")
        if not bool(weight.isfinite().all() & bias.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
        parts.append((weight, bias))
    return tuple(parts)


def _names(layer: int, hidden: bool) -> list[str]:
    """Names of the linear layers of one network."""
    return [f"layers.{layer}.0", f"layers.{layer}.2"] if hidden else [f"layers.{layer}"]
