"""What a layer attends to while decoding, for methods that are more than an immutable prefix.

A method that reads only a part of what it stores (Quest, ShadowKV, RocketKV), keeps it elsewhere
(host memory) or in another form (quantised), or goes on evicting and merging while it decodes (H2O,
StreamingLLM, CaM, KeepKV) returns a :class:`DecodeStore` from ``Method.decode_store``. The layer
asks it before every attention call what to attend to, and tells it afterwards what was appended.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.kernels.workspace import Workspace


class DecodeStore(abc.ABC):
    """One layer's compressed context of one batch; owns its storage.

    ``batch`` and ``kv_heads`` rows in (batch, head) order everywhere. Stores are copied with
    ``copy.deepcopy`` when a context is forked: what is immutable should return itself from
    ``__deepcopy__``, what changes while decoding must be copied.
    """

    #: whether :meth:`read` and :meth:`absorb` neither wait for the device nor allocate, so that a
    #: decode step that contains them can be captured in a CUDA graph
    capturable = False

    #: whether :meth:`absorb` takes tokens over; a context is then forked anew for every question
    absorbs = False

    #: whether :meth:`absorb` takes tokens over only when :meth:`due` says so, by
    #: :meth:`take_over`; both may then be called between two steps, which do not depend on them
    periodic = False

    #: questions of so many tokens and more may stand in one batch, padded to one length; shorter
    #: ones only beside those of their own length, because the store reads or counts them otherwise
    padded_from: float = 0

    #: whether it computes attention as the softmax of scaled products itself; such a store is
    #: refused where a model caps its logits or has sinks
    plain_logits = True

    @abc.abstractmethod
    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix | QuantisedPrefix, BlockList | None]:
        """What the queries of this forward attend to besides the tail.

        Args:
            queries: [batch, query_heads, query_tokens, head_dim], post-rotary.
            scaling: factor of the attention logits.

        Returns:
            A prefix (entries may carry a bias), as it is or in fewer bits, and the blocks of it to
            read, None for all.
        """

    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        """Called after the attention of every forward; takes tokens over from the tail.

        Args:
            queries: as in :meth:`read`.
            keys, values: [batch, kv_heads, tail, dim], the tail, this forward's tokens included.
            visible: bool [batch, tail], False on padding; None: no padding.

        Returns:
            How many of the tail's first tokens it took (the layer drops them), the same number for
            every row; 0 leaves the tail as it is.
        """
        return 0

    @property
    def longest_tail(self) -> int:
        """Columns of the tail after which a periodic store takes them over."""
        return 0

    @property
    def croppable(self) -> bool:
        """Whether tokens of the tail can be taken back."""
        return True

    def record(self, queries: Tensor, length: Tensor) -> None:
        """Called instead of :meth:`absorb` in a step with a tail of fixed size: note what a
        periodic store wants to know of the queries [batch, query_heads, 1, head_dim] of the tail's
        newest column, without the host. ``length`` int32 [1] counts the columns, this one too."""
        raise NotImplementedError  # stores that are not periodic take part in no such step

    def due(self, pending: Sequence[int], new: Sequence[int]) -> bool:
        """Whether a periodic store takes the tail over now: tokens of every sequence in the tail,
        and how many of them came with the last forward; the same in all layers."""
        return False

    def take_over(
        self,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        new: Sequence[int],
        at_once: bool = False,
    ) -> None:
        """Take the whole tail over; arguments as in :meth:`absorb` and :meth:`due`.

        Args:
            at_once: choose now among everything, whatever is due.
        """
        raise UserError("this method compresses nothing between two steps; use one that does")

    @abc.abstractmethod
    def lengths(self) -> Tensor:
        """Context entries stored per row, int64 [batch, kv_heads] (wherever they are stored)."""

    @abc.abstractmethod
    def tensors(self) -> list[Tensor]:
        """Every tensor whose storage the store holds."""

    def select_rows(self, indices: list[int]) -> DecodeStore:
        """The store of another batch made of these batch entries (beams, repeated sequences).

        Raises:
            UserError: where the store cannot be rearranged.
        """
        raise UserError(
            "what this method keeps cannot be rearranged; use greedy decoding or sampling with one "
            "sequence per prompt"
        )

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values from which ``Method.restored_store`` makes it again, besides
        the entries of :class:`WholePrefix`; ``method`` among them is the method's description.

        Raises:
            UserError: a store that is not saved.
        """
        raise UserError(
            "this method reads a part, stores elsewhere or goes on while decoding, which is not "
            "saved; prefill again where the context is needed"
        )

    def describe(self) -> dict[str, Any]:
        """Bytes by place, for reports: ``{"device": n, "host": m}``."""
        places = {"device": 0, "host": 0}
        held: dict[tuple[str, int], int] = {}
        for tensor in self.tensors():
            storage = tensor.untyped_storage()
            place = "host" if tensor.device.type == "cpu" else "device"
            held[place, storage.data_ptr()] = storage.nbytes()
        for (place, _), size in held.items():
            places[place] += size
        return places


class WholePrefix(DecodeStore):
    """A store whose :attr:`prefix` is read whole at every step; what varies is how it changes."""

    prefix: RaggedPrefix

    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        return self.prefix, None
