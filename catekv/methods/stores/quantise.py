"""The prefix in eight or four bits per number, which decode attention reads as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
        """The store that said this of itself (:meth:`saved`)."""
        own = dict(tensors)
        rows = [(int(offset), int(length)) for offset, length in state["rows"]]
        plan = from_rows(
            own["like_keys"], own["like_values"], own.get("bias"), rows, state["kv_heads"]
        )
        return cls(quantised_from(state["quantised"], plan, own, state["places"]))

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
