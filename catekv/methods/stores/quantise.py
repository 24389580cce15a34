"""The prefix in eight or four bits per number, which decode attention reads as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.codes import EIGHT_BITS, GROUP, coded_entries
from catekv.kernels.quantised import QuantisedPrefix, quantised, quantised_from
from catekv.kernels.ragged import BlockList, RaggedPrefix, from_rows
from catekv.kernels.workspace import Workspace
from catekv.methods.stores.base import DecodeStore


class QuantisedStore(DecodeStore):
    """Keys and values of one layer as codes (:mod:`catekv.kernels.codes`).

    On a GPU the decode kernel loads codes and scales and nothing else of the prefix; the torch path
    unpacks one bucket of rows at a time, so that there it saves memory and not time.
    """

    capturable = True
    plain_logits = False

    def __init__(self, prefix: QuantisedPrefix):
        self.quantised = prefix

    @classmethod
    def build(cls, prefix: RaggedPrefix, form: str) -> QuantisedStore:
        """Quantise a prefix; ``form`` is ``int8``, ``fp8`` or ``int4``."""
        return cls(quantised(prefix, form))

    @classmethod
    def restored(cls, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantisedStore:
        """The store that said this of itself (:meth:`saved`).

        Raises:
            UserError: parts are missing, or are not what the rows say.
        """
        own = dict(tensors)
        rows = [(int(offset), int(length)) for offset, length in state["rows"]]
        try:
            plan = from_rows(
                own["like_keys"], own["like_values"], own.get("bias"), rows, state["kv_heads"]
            )
            found = quantised_from(state["quantised"], plan, own, state["places"])
        except KeyError as error:
            raise UserError(
                f"a saved cache lacks {error} of a layer; make the context again"
            ) from error
        _refuse_damage(found)
        return cls(found)

    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[QuantisedPrefix, BlockList | None]:
        return self.quantised, None

    def lengths(self) -> Tensor:
        return self.quantised.plan.lengths.long()

    def tensors(self) -> list[Tensor]:
        return self.quantised.tensors()

    def select_rows(self, indices: list[int]) -> QuantisedStore:
        chosen = self.quantised.select_rows(indices)
        return self if chosen is self.quantised else type(self)(chosen)

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        prefix = self.quantised
        tensors = prefix.named_tensors()
        tensors |= {"like_keys": prefix.plan.keys, "like_values": prefix.plan.values}
        if prefix.plan.bias is not None:
            tensors["bias"] = prefix.plan.bias
        return tensors, {
            "quantised": prefix.form,
            "rows": prefix.plan.host_rows,
            "kv_heads": prefix.kv_heads,
            "places": prefix.host_places,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantisedStore:
        # immutable: forks share it
        return self


def _refuse_damage(prefix: QuantisedPrefix) -> None:
    """Raise ``UserError`` unless every row lies within codes, scales and residual of its form; a
    kernel would read beyond them."""
    plan, four_bits = prefix.plan, prefix.form == "int4"
    number = torch.uint8 if four_bits else EIGHT_BITS[prefix.form][0]
    scale = torch.float16 if four_bits else torch.float32
    coded = rest = 0
    for index, (offset, length) in enumerate(plan.host_rows):
        count = coded_entries(length) if four_bits else length
        first, left = prefix.host_places[index] if four_bits else (offset, 0)
        coded, rest = max(coded, first + count), max(rest, left + length - count)
    residual = prefix.residual or (None, None)
    for like, codes, left_over, key in (
        (plan.keys, prefix.keys, residual[0], True),
        (plan.values, prefix.values, residual[1], False),
    ):
        dim = like.shape[-1]
        groups: tuple[int, ...] = (coded // GROUP, dim, 2) if key else (coded, 2, 2)
        parts = [
            (like, (0, dim), plan.keys.dtype),
            (codes.numbers, (coded, (dim + 1) // 2 if four_bits else dim), number),
            (codes.scales, groups if four_bits else (coded, 1), scale),
        ]
        if left_over is not None:
            parts.append((left_over, (rest, dim), plan.keys.dtype))
        for part, shape, dtype in parts:
            fits = part.dim() == len(shape) and part.shape[1:] == shape[1:]
            if not fits or len(part) < shape[0] or part.dtype != dtype:
                raise UserError(
                    f"a saved cache in {prefix.form} holds {list(part.shape)} numbers of the type "
                    f"{part.dtype} where {list(shape)} of {dtype} belong; make the context again"
                )
