"""Which weights filled a cache: a cheap fingerprint of a model as it is at this moment.

Keys and values of other weights have the same shapes but answer wrongly, without any error. So a
cache remembers the fingerprint of the weights (and of the adapters that were active) that read its
prompt, and is refused by others.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from catekv.errors import UserError

_VALUES = 64
#: Fingerprints with the state of the weights that they were made of.
_known: WeakKeyDictionary[nn.Module, tuple[Any, WeightsIdentity]] = WeakKeyDictionary()


@dataclass(frozen=True)
class WeightsIdentity:
    """Weights and active adapters of a model.

    Attributes:
        dtype: number format of the embeddings, as in ``float32``.
        digest: hash over shape, number format and some values of every parameter and persistent
            buffer, and over name and scaling of the active adapters.
    """

    dtype: str
    digest: str

    @classmethod
    def of(cls, model: nn.Module) -> WeightsIdentity:
        """The identity of a transformers model with its adapters as they are set now.

        Computed anew when a weight was replaced or written to, or an adapter was switched; else
        remembered. Weights that accelerate offloads are read from where they lie; of those that
        cannot be read at all (on the meta device) only shape and number format count.
        """
        found = _Weights()
        found.add(model)
        state = found.adapters, found.merged, [_state(tensor) for _, _, tensor in found.tensors]
        known = _known.get(model)
        if known is None or known[0] != state:
            dtype = str(_embeddings(model).dtype).removeprefix("torch.")
            known = _known[model] = state, cls(dtype, _digest(found))
        return known[1]

    @classmethod
    def from_dict(cls, content: dict[str, str] | None) -> WeightsIdentity | None:
        """What :meth:`to_dict` wrote; None where nothing was written."""
        return None if content is None else cls(content["dtype"], content["digest"])

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def refuse_other_weights(
    made_by: WeightsIdentity | None, model: nn.Module, what: str = "the context"
) -> None:
    """Refuse a cache that other weights filled; None (nobody knows which) passes.

    Raises:
        UserError: another number format, other weights, or other adapters.
    """
    if made_by is None:
        return
    own = WeightsIdentity.of(model)
    if made_by.dtype != own.dtype:
        raise UserError(
            f"{what} was read in {made_by.dtype}, but this model runs in {own.dtype}; load the "
            f"model with dtype={made_by.dtype!r} or prefill again"
        )
    if made_by.digest != own.digest:
        raise UserError(
            f"{what} was read with other weights, another adapter or another quantisation than "
            "this model has now; use the model that read it, or prefill again"
        )


def warn_unknown_weights(what: str) -> None:
    """Say that nothing tells which weights filled a saved cache."""
    warnings.warn(
        f"{what} does not say which weights it was read with, so it cannot be checked that they "
        "are those of this model; save it again to record them",
        stacklevel=3,
    )


class _Weights:
    """Every weight of a model that takes part in its forward; of adapters only the active ones.

    A wrapper or a compiled model has the same weights in the same order under other names, so names
    do not count.

    Attributes:
        tensors: module, name in it and weight. adapters: name and scaling of what takes part.
        merged: names of adapters that are part of the weights; PEFT merges past the counters of
            :func:`_state`.
    """

    def __init__(self) -> None:
        self.tensors: list[tuple[nn.Module, str, Tensor]] = []
        self.adapters: list[tuple[str, Any]] = []
        self.merged: list[str] = []
        self._seen: set[int] = set()

    def add(self, module: nn.Module) -> None:
        """Add the weights of a module and of those below it."""
        self._add_own(module)
        by_adapter = getattr(module, "adapter_layer_names", ())
        active = self._active(module) if by_adapter else []
        for name, child in module._modules.items():
            if child is None:
                continue
            if name not in by_adapter:
                self.add(child)
                continue
            own: Any = child
            for key in active:
                if key not in own:
                    continue
                if isinstance(own[key], nn.Module):
                    self.add(own[key])
                else:
                    self.tensors.append((child, key, own[key]))

    def _add_own(self, module: nn.Module) -> None:
        kept = module._non_persistent_buffers_set
        for held, left_out in ((module._parameters, ()), (module._buffers, kept)):
            for name, tensor in held.items():
                if tensor is not None and name not in left_out and id(tensor) not in self._seen:
                    self._seen.add(id(tensor))
                    self.tensors.append((module, name, tensor))

    def _active(self, layer: Any) -> list[str]:
        """Adapters of a PEFT layer that take part in its forward; merged ones are in its base."""
        self.merged += getattr(layer, "merged_adapters", ())
        if layer.disable_adapters or getattr(layer, "merged", False):
            return []
        scaling = getattr(layer, "scaling", None)
        active = list(layer.active_adapters)
        self.adapters += [(key, scaling.get(key) if scaling else None) for key in active]
        return active


def _state(tensor: Tensor) -> list[tuple[int, int]]:
    """Place and number of writes of a weight; both change nothing where it lies elsewhere."""
    return [
        (0, 0)
        if part.device.type == "meta"
        # what was made in inference mode has no counter
        else (part.data_ptr(), 0 if part.is_inference() else part._version)
        for part in _parts(tensor)
    ]


def _embeddings(model: Any) -> Tensor:
    return model.get_input_embeddings().weight


def _digest(found: _Weights) -> str:
    digest = hashlib.sha256(repr(found.adapters).encode())
    samples: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for module, name, tensor in found.tensors:
            for part in _parts(_at_hand(module, name, tensor)):
                digest.update(f"{list(part.shape)}{part.dtype}".encode())
                if part.device.type != "meta" and part.numel():
                    samples.setdefault(part.device, []).append(_sample(part))
        # one transfer per device: a transfer of every weight would take longer than the rest
        for parts in samples.values():
            digest.update(torch.cat(parts).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _at_hand(module: Any, name: str, tensor: Tensor) -> Tensor:
    """The tensor itself, or what accelerate holds of it elsewhere."""
    hook = getattr(module, "_hf_hook", None)
    if tensor.device.type != "meta" or hook is None:
        return tensor
    for one in getattr(hook, "hooks", [hook]):
        held = getattr(one, "weights_map", None)
        if held is not None and name in held:
            return torch.as_tensor(held[name])
    return tensor


def _parts(tensor: Any) -> list[Tensor]:
    """The plain tensors of one that is made of several (quantised, or shared among processes)."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    held = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    # a sharded tensor names the mesh of its processes among its parts
    return [part for one in held if isinstance(one, Tensor) for part in _parts(one)]


def _sample(tensor: Tensor) -> Tensor:
    """The bytes of up to 64 values, evenly spread."""
    flat = tensor.reshape(-1)
    # an odd step visits every column of a matrix whose width is a power of two
    step = -(-flat.numel() // _VALUES) | 1
    return flat[::step][:_VALUES].contiguous().view(torch.uint8)
