"""Decode attention over a quantised prefix and a dense tail: the definition and the torch path.

Both are those of :mod:`catekv.kernels.ragged_decode`. The definition reads the entries in float32,
as the codes mean them; the torch path unpacks one bucket of rows at a time to the model's type,
into scratch memory that all layers share.
"""

from __future__ import annotations

from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import BlockList
from catekv.kernels.ragged_decode import (
    ragged_decode_reference,
    ragged_decode_torch,
    why_no_decode_kernel,
)
from catekv.kernels.workspace import Workspace


def why_no_quantised_kernel(
    queries: Tensor, prefix: QuantisedPrefix, tail_keys: Tensor
) -> str | None:
    """Why the triton kernel cannot take these tensors; None if it can."""
    return why_no_decode_kernel(queries, prefix.plan, tail_keys)


def quantised_decode_reference(
    queries: Tensor,
    prefix: QuantisedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """The definition; arguments as in :func:`catekv.kernels.ragged_decode`, without ``blocks``."""
    return ragged_decode_reference(
        queries, prefix, tail_keys, tail_values, scaling, tail_mask, tail_length, form=form
    )


def quantised_decode_torch(
    queries: Tensor,
    prefix: QuantisedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """The torch path; arguments as in :func:`catekv.kernels.ragged_decode`, without ``blocks``."""
    return ragged_decode_torch(
        queries, prefix, tail_keys, tail_values, scaling, tail_mask, tail_length,
        workspace=workspace, form=form,
    )  # fmt: skip
