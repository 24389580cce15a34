"""The gates of Fast KVzip, in the file that they were published in.

A ``.pt`` file with an object whose ``module`` lists one table of tensors per layer:
``q_proj.weight`` [H*g*r, D] and ``.bias``, ``k_proj.weight`` [H*r, D], ``q_norm.weight`` and
``k_norm.weight`` [r], ``k_base`` [H, 1, sinks, r] and ``b`` [H, 1, g], for H KV heads with g query
heads each, rank r and hidden size D.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_bytes

#: Tokens whose states are held in float32 at once: 32 MiB of 4096 numbers.
_BLOCK = 2048
_EPSILON = 1e-6
#: Tensor of a gate -> what the file calls it.
_NAMES = {
    "queries": "q_proj.weight", "query_bias": "q_proj.bias", "keys": "k_proj.weight",
    "query_norm": "q_norm.weight", "key_norm": "k_norm.weight", "base": "k_base", "bias": "b",
}  # fmt: skip
#: What makes the numbers of their training that published files hold besides tensors, under its
#: names in numpy before and from 2.0 on.
_HARMLESS: list[Any] = [
    *(
        (made.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for made, name in ((np.zeros(0), "_reconstruct"), (np.float64(0), "scalar"))
        for core in ("core", "_core")
    ),
    codecs.encode, np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType,
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class LowRankGate:
    """The gate of one layer, in float32.

    Attributes:
        queries: [H*g*r, D]. query_bias: [H*g*r]. keys: [H*r, D]. query_norm, key_norm: [r].
        base: [H, sinks, r], keys that every token is compared with. bias: [H, g].
    """

    queries: Tensor
    query_bias: Tensor
    keys: Tensor
    query_norm: Tensor
    key_norm: Tensor
    base: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        """``ValueError`` for shapes that do not belong together, or what is no number."""
        heads, sinks, rank = self.base.shape
        rows, group, inputs = len(self.queries), self.bias.shape[-1], self.queries.shape[-1]
        wanted: dict[str, list[int]] = {
            "queries": [heads * group * rank, inputs], "query_bias": [rows],
            "keys": [heads * rank, inputs], "query_norm": [rank], "key_norm": [rank],
            "base": [heads, sinks, rank], "bias": [heads, group],
        }  # fmt: skip
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if list(tensor.shape) != shape:
                raise ValueError(f"{_NAMES[name]} is {list(tensor.shape)} instead of {shape}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{_NAMES[name]} holds values that are not finite")

    @property
    def sizes(self) -> tuple[int, int]:
        """KV heads and inputs."""
        return len(self.base), self.queries.shape[-1]

    def scores(self, states: Tensor) -> Tensor:
        """Of states [batch, tokens, hidden_size] float32 in (0, 1), [batch, kv_heads, tokens]."""
        own = {item.name: getattr(self, item.name).to(states.device) for item in fields(self)}
        (heads, group), rank = self.bias.shape, self.base.shape[-1]
        found = []
        for part in states.split(_BLOCK, dim=1):
            inputs = part.float()
            queries = F.linear(inputs, own["queries"], own["query_bias"])
            queries = F.rms_norm(
                queries.unflatten(-1, (heads, group, rank)), [rank], own["query_norm"], _EPSILON
            )
            keys = F.linear(inputs, own["keys"]).unflatten(-1, (heads, 1, rank))
            keys = F.rms_norm(keys, [rank], own["key_norm"], _EPSILON)
            logits = (queries * keys).sum(dim=-1) / rank**0.5 + own["bias"]
            # the base keys of a head, for all of its query heads: [..., heads, group, sinks]
            against = queries @ own["base"].transpose(1, 2) / rank**0.5
            beaten = (against.logsumexp(dim=-1) - logits).neg_().sigmoid_()
            found.append(beaten.mean(dim=-1))
        return torch.cat(found, dim=1).transpose(1, 2)


def load_gates(path: Path | str) -> tuple[LowRankGate, ...]:
    """One gate per layer; ``UserError`` for a file that holds none."""
    path = Path(path)
    data = io.BytesIO(read_bytes(path))
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            layers = torch.load(data, map_location="cpu", weights_only=True)["module"]
        gates = tuple(_gate(layer) for layer in layers)
        if not gates:
            raise ValueError("no layers")
        if len({gate.sizes for gate in gates}) > 1:
            raise ValueError("gates of layers differ in size")
    except Exception as error:  # an archive or pickle has errors of its own for every damage
        reason = str(error).partition("\n")[0][:100]
        raise UserError(
            f"{path} holds no gates of Fast KVzip ({type(error).__name__}: {reason}); download the "
            "published ones of this model"
        ) from error
    return gates


def _gate(tensors: Mapping[str, Tensor]) -> LowRankGate:
    own = {name: tensors[there].detach().float() for name, there in _NAMES.items()}
    own["base"], own["bias"] = own["base"].squeeze(1), own["bias"].squeeze(1)
    return LowRankGate(**own)


def untrained_gate(sizes: tuple[int, int, int], layer: int, seed: int) -> LowRankGate:
    """A random gate for (hidden size, KV heads, query heads per KV head), to try the method."""
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    (inputs, heads, group), rank = sizes, 16

    def drawn(*extents: int) -> Tensor:
        return torch.randn(extents, generator=generator)

    return LowRankGate(
        drawn(heads * group * rank, inputs) / inputs**0.5,
        torch.zeros(heads * group * rank),
        drawn(heads * rank, inputs) / inputs**0.5,
        torch.ones(rank),
        torch.ones(rank),
        drawn(heads, 16, rank),
        torch.zeros(heads, group),
    )
