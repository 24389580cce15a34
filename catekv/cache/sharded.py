"""Choosing what to keep where a process holds some of a model's KV heads (tensor parallelism)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from catekv.errors import NeedsAllHeadsError
from catekv.methods.base import Method, Observed, Selection
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.per_sequence import together
from catekv.models.sharding import all_heads, is_sharded, local_heads

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.stores.base import DecodeStore


def select_here(
    method: Method, layers: Sequence[Observed], valid: Tensor | None, kv_heads: int
) -> tuple[Method, list[Selection]]:
    """What a method keeps of the KV heads of this process.

    A method that treats every head by itself decides on its own part of the heads. One that
    compares the heads of a layer (``NeedsAllHeadsError``) decides on all of them:
    the processes exchange what they observed, decide alike, and each keeps the part that is its
    own. Both give what a single process would choose.

    Args:
        method: for the whole model.
        layers, valid: as :meth:`Method.select_padded` takes them, with the heads of this process.
        kv_heads: of the whole model.

    Returns:
        The method to open the layers' stores with, and one selection per layer.
    """
    method = _for_prompts(method, layers[0], valid, kv_heads)
    local = layers[0].keys.shape[1]
    if not is_sharded(local, kv_heads):
        return method, method.select_padded(layers, valid)
    heads = local_heads(local, kv_heads)
    try:
        part = method.for_heads(heads)
    except NeedsAllHeadsError as reason:
        whole = method.select_padded([_of_all_heads(layer) for layer in layers], valid)
        chosen = [
            one.of_heads(heads, layer.keys, layer.values)
            for one, layer in zip(whole, layers, strict=True)
        ]
        return _Undivided(method, str(reason)), chosen
    return part, part.select_padded(layers, valid)


def _for_prompts(method: Method, layer: Observed, valid: Tensor | None, kv_heads: int) -> Method:
    """The method with the sizes that it has for the prompts of a batch."""
    if method.keep is None:
        return method
    shape = dataclasses.replace(layer.shape, query_heads=layer.group * kv_heads, kv_heads=kv_heads)
    batch = layer.keys.shape[0]
    lengths = [layer.tokens] * batch if valid is None else valid.sum(dim=-1).tolist()
    return together([method.for_prompt(tokens, shape) for tokens in lengths])


def _of_all_heads(layer: Observed) -> Observed:
    """The same layer with the heads of all processes. Hidden states are everywhere already."""
    sums, sinks, projection = layer.column_sums, layer.form.sinks, layer.output_projection
    moments = layer.query_moments
    if sinks is not None:
        sinks = all_heads(sinks[None])[0]
    return dataclasses.replace(
        layer,
        queries=all_heads(layer.queries),
        keys=all_heads(layer.keys),
        values=all_heads(layer.values),
        column_sums=None if sums is None else all_heads(sums),
        output_projection=None if projection is None else all_heads(projection, dim=0),
        query_moments=None
        if moments is None
        else QueryMoments(moments.count, *map(all_heads, moments.tensors()[1:])),
        repeat_scores={way: all_heads(scores) for way, scores in layer.repeat_scores.items()},
        form=layer.form if sinks is None else dataclasses.replace(layer.form, sinks=sinks),
    )


@dataclass(frozen=True)
class _Undivided(Method):
    """A method that decided on all heads together, and so cannot go on deciding with a part."""

    method: Method
    reason: str

    def open_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        if self.method.decode_store(prefix, observed, valid, selection) is not None:
            raise NeedsAllHeadsError(self.reason)
        return self.method.open_store(prefix, observed, valid, selection)

    def to_dict(self) -> dict[str, Any]:
        return self.method.to_dict()
