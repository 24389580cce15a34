"""Texts that a model repeats, and what its layers note of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from catekv.cache import plain_layers
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.methods.base import Needs
from catekv.methods.formulas.repeat import Repeat

if TYPE_CHECKING:
    from catekv.model import CateKVModel


def repeated(
    model: CateKVModel, ids: Sequence[int], way: Repeat, chunk_size: int, *, inputs: bool = False
) -> list[RaggedLayer]:
    """All layers after a text was read and repeated, with what attention read where ``inputs``.

    Raises:
        UserError: layers that are not compressed (sliding windows, linear attention).
    """
    needs = Needs(attention_inputs=inputs, output_projection=way.plus, repeats=(way,))
    cache = model.observe(list(ids), needs=needs, chunk_size=chunk_size).cache
    layers = cache.ragged_layers
    unseen = sorted(set(range(model.shape.layers)) - {layer.index for layer in layers})
    if unseen:
        raise UserError(
            f"{plain_layers.described(cache.layers, unseen)} of this model are not compressed; "
            "KVzip scores heads of models whose layers all attend to the whole context"
        )
    return layers
