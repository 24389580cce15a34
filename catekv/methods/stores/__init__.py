"""What becomes of a prefix after compression: reads of a part, other places, other formats.

Stores that take any method's prefix are known by name (the option ``store`` of every method). A
store that one method alone uses stands in that method's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.stores.base import DecodeStore

#: Names of the places and formats that any method's prefix can be kept in.
STORES = ("device", "offload", "int8", "fp8", "int4")
#: Those of them that hold other numbers than were given.
QUANTISED = ("int8", "fp8", "int4")


def stored(name: str, prefix: RaggedPrefix) -> DecodeStore | None:
    """The prefix kept as ``name`` says; None for ``device``, which is what it is already."""
    if name == "device":
        return None
    if name == "offload":
        from catekv.methods.stores.offload import OffloadedPrefix

        return OffloadedPrefix.build(prefix)
    from catekv.methods.stores.quantise import QuantisedStore

    return QuantisedStore.build(prefix, name)


def restored(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DecodeStore | None:
    """The store of one of these names that said this of itself (:meth:`DecodeStore.saved`); None if
    it was a method's own."""
    if "quantised" not in state:
        return None
    from catekv.methods.stores.quantise import QuantisedStore

    return QuantisedStore.restored(state, tensors)
