"""Weights of several projections side by side, so that one product computes all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SideBySide:
    """Linear layers that read the same states, as one layer.

    :meth:`join` moves their weights into one tensor, of which they become views, so nothing is held
    twice: a state dict, a saved checkpoint and other forwards see the values they saw before. What
    moves a model (``model.to(...)``) takes the weights apart again.

    Args:
        layers: plain linear layers with weights of one type on one device, all or none with bias.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        self.layers = tuple(layers)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def join(self) -> None:
        """Put the weights side by side, if they are not."""
        self.weight = _joined([layer.weight for layer in self.layers])
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        self.bias = _joined(biases) if biases else None

    def __call__(self, states: Tensor) -> Tensor:
        """[..., all outputs] of states [..., width], in the order of the layers."""
        assert self.weight is not None
        return F.linear(states, self.weight, self.bias)


@torch.no_grad()
def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of all rows, of which the parameters are views from then on."""
    known = _adjacent(parameters)
    if known is not None:
        return known
    first = parameters[0]
    rows = sum(len(parameter) for parameter in parameters)
    # ordinary memory even within inference mode, which it outlives
    with torch.inference_mode(False):
        joined = first.new_empty(rows, *first.shape[1:])
        start = 0
        for parameter in parameters:
            part = joined[start : start + len(parameter)]
            part.copy_(parameter.data)
            parameter.data = part
            start += len(parameter)
    return joined


def _adjacent(parameters: Sequence[Tensor]) -> Tensor | None:
    """The tensor of all rows where the parameters lie behind each other in one storage already."""
    first = parameters[0].data
    storage, place = first.untyped_storage().data_ptr(), first.data_ptr()
    for parameter in parameters:
        part = parameter.data
        if part.data_ptr() != place or part.untyped_storage().data_ptr() != storage:
            return None
        place += part.nbytes
    rows = sum(len(parameter) for parameter in parameters)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
