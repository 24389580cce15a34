"""Full attention as other libraries compute it, on keys and values that are allocated once.

Every step writes the newest token into the same last column and attends to all of them: a step at
exactly one length, which a CUDA graph can hold. The model runs with an attention function that asks
the layer for the result.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from catekv import kernels
from catekv.evaluation.efficiency.fill import fill_random_
from catekv.evaluation.efficiency.memory import NotComputedError
from catekv.model import CateKVModel
from catekv.models.compat import attention_named, decoder_layers

_READER = "_catekv_reader"
_NAME = "catekv_measured"
PAGE = 16


class Reader:
    """Keys and values of one layer and how they are attended to.

    Args:
        batch, kv_heads, tokens, head_dim, dtype, device: the extents of the cache; ``tokens``
            includes the newest one.
    """

    #: where the tokens lie in the storage: [batch, kv_heads, tokens, dim] or with tokens before
    heads_first = True

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        tokens: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ):
        self.tokens = tokens
        room = -(-tokens // PAGE) * PAGE
        shape = (batch, kv_heads, room, head_dim)
        if not self.heads_first:
            shape = (batch, room, kv_heads, head_dim)
        self.keys = fill_random_(torch.empty(shape, dtype=dtype, device=device), seed)
        self.values = fill_random_(torch.empty(shape, dtype=dtype, device=device), seed + 1)
        self._length = torch.full((1,), tokens, dtype=torch.int32, device=device)

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Put the newest token, [batch, kv_heads, 1, dim], into the last column."""
        if self.keys.is_cuda:
            self._append(keys, values)
            return
        column = self.tokens - 1
        if self.heads_first:
            self.keys[:, :, column] = keys[:, :, 0]
            self.values[:, :, column] = values[:, :, 0]
        else:
            self.keys[:, column] = keys[:, :, 0]
            self.values[:, column] = values[:, :, 0]

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """The same in one launch, as the project's own step does it."""

        def write(tail_keys: Tensor, tail_values: Tensor, length: Tensor) -> None:
            kernels.append(tail_keys, tail_values, keys, values, length)

        self.append_by(write)

    def append_by(self, write: Callable[[Tensor, Tensor, Tensor], Any]) -> Any:
        """Let ``write`` put the newest token into the last column, and return what it returns: see
        :meth:`catekv.cache.layer.RaggedLayer.append_by`."""
        keys, values = self.keys, self.values
        if not self.heads_first:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        return write(keys, values, self._length)

    def attend(self, queries: Tensor, scaling: float) -> Tensor:
        """Queries [batch, query_heads, 1, dim] over all tokens; [batch, 1, query_heads, dim]."""
        raise NotImplementedError


class Sdpa(Reader):
    """``torch.nn.functional.scaled_dot_product_attention``.

    The query heads of a group become further queries of their KV head, so that keys are not
    repeated whichever of torch's kernels runs.
    """

    def attend(self, queries: Tensor, scaling: float) -> Tensor:
        batch, query_heads, _, dim = queries.shape
        heads = self.keys.shape[1]
        output = F.scaled_dot_product_attention(
            queries.view(batch, heads, query_heads // heads, dim),
            self.keys[:, :, : self.tokens],
            self.values[:, :, : self.tokens],
            scale=scaling,
        )
        return output.reshape(batch, 1, query_heads, dim)


class Flex(Reader):
    """``flex_attention``, compiled: torch's own decode kernel that splits long rows."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.function = _compiled_flex()

    def attend(self, queries: Tensor, scaling: float) -> Tensor:
        output: Tensor = self.function(
            queries,
            self.keys[:, :, : self.tokens],
            self.values[:, :, : self.tokens],
            scale=scaling,
            enable_gqa=queries.shape[1] != self.keys.shape[1],
        )
        return output.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


class FlashAttention(Reader):
    """``flash_attn_with_kvcache`` of the package flash-attn, version 3 if that is installed."""

    heads_first = False

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.function = importlib.import_module(_flash_module()).flash_attn_with_kvcache
        self.lengths = torch.full(
            (self.keys.shape[0],), self.tokens, dtype=torch.int32, device=self.keys.device
        )

    def attend(self, queries: Tensor, scaling: float) -> Tensor:
        output: Tensor = self.function(
            queries.transpose(1, 2),
            self.keys,
            self.values,
            cache_seqlens=self.lengths,
            softmax_scale=scaling,
            causal=True,
        )
        return output


class FlashInfer(Reader):
    """FlashInfer's decode kernels: the one for a single request, or pages for a batch."""

    heads_first = False

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.library = importlib.import_module("flashinfer")
        self.planned: Any = None

    def _plan(self, query_heads: int, scaling: float) -> Any:
        batch, room, heads, dim = self.keys.shape
        device, pages = self.keys.device, room // PAGE
        wrapper = self.library.BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(128 << 20, dtype=torch.uint8, device=device),
            "NHD",
            use_tensor_cores=query_heads >= 4 * heads,
        )
        wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32, device=device) * pages,
            torch.arange(batch * pages, dtype=torch.int32, device=device),
            torch.full(
                (batch,), self.tokens - (pages - 1) * PAGE, dtype=torch.int32, device=device
            ),
            query_heads,
            heads,
            dim,
            PAGE,
            q_data_type=self.keys.dtype,
            kv_data_type=self.keys.dtype,
            sm_scale=scaling,
        )
        return wrapper

    def attend(self, queries: Tensor, scaling: float) -> Tensor:
        batch, query_heads, _, dim = queries.shape
        heads = self.keys.shape[2]
        if batch == 1:
            output = self.library.single_decode_with_kv_cache(
                queries[0, :, 0],
                self.keys[0, : self.tokens],
                self.values[0, : self.tokens],
                kv_layout="NHD",
                use_tensor_cores=query_heads >= 4 * heads,
                sm_scale=scaling,
            )
            return output.view(1, 1, query_heads, dim)
        if self.planned is None:
            self.planned = self._plan(query_heads, scaling)
        pages = [tensor.view(-1, PAGE, *tensor.shape[2:]) for tensor in (self.keys, self.values)]
        output = self.planned.run(queries[:, :, 0], tuple(pages))
        return output.view(batch, 1, query_heads, dim)


def _flash_module() -> str:
    found = importlib.util.find_spec("flash_attn_interface")
    return "flash_attn" if found is None else "flash_attn_interface"


@dataclass(frozen=True)
class Library:
    """A way to compute full attention: its label, its reader, and the package it needs."""

    label: str
    reader: type[Reader]
    package: str = ""
    needs_cuda: bool = False

    def absent(self, device: torch.device) -> str:
        """Why it cannot run here, or nothing."""
        module = _flash_module() if self.package == "flash_attn" else self.package
        if module and importlib.util.find_spec(module) is None:
            return f"{self.package} is not installed"
        if self.needs_cuda and device.type != "cuda":
            return "runs on CUDA only"
        return ""


LIBRARIES = {
    "sdpa": Library("full, torch SDPA", Sdpa),
    "flex": Library("full, torch FlexAttention", Flex, needs_cuda=True),
    "flash": Library("full, flash-attn", FlashAttention, "flash_attn", True),
    "flashinfer": Library("full, FlashInfer", FlashInfer, "flashinfer", True),
}


class FixedLayer(CacheLayerMixin):
    """A cache layer at a fixed length: see the module's first lines."""

    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to be done."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.reader.write(key_states, value_states)
        keys = key_states.view(key_states.shape)
        setattr(keys, _READER, self.reader)
        return keys, value_states

    def append_by(
        self, write: Callable[[Tensor, Tensor, Tensor], Any]
    ) -> tuple[Any, Tensor, Tensor]:
        """As :meth:`catekv.cache.layer.RaggedLayer.append_by`, for the fused step."""
        written = self.reader.append_by(write)
        keys = self.reader.keys.view(self.reader.keys.shape)
        setattr(keys, _READER, self.reader)
        return written, keys, self.reader.values

    def get_seq_length(self) -> int:
        return self.reader.tokens - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reader.tokens, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


def dense_cache(
    model: CateKVModel,
    library: Library,
    tokens: int,
    batch: int,
    seed: int = 0,
    distinct: int | None = None,
) -> Cache:
    """A full cache of ``tokens`` random entries per head and room for the newest one.

    ``distinct``: layers with memory of their own, as in
    :func:`catekv.evaluation.efficiency.fill.random_cache`.
    """
    shape = model.shape
    blocks = list(decoder_layers(model.model))
    readers = [
        library.reader(
            batch,
            shape.kv_heads,
            tokens + 1,
            shape.head_dim,
            model.dtype,
            next(block.parameters()).device,
            seed + 2 * index,
        )
        for index, block in enumerate(blocks[:distinct])
    ]
    return Cache(layers=[FixedLayer(readers[i % len(readers)]) for i in range(len(blocks))])


def stored_bytes(cache: Cache) -> int:
    """Bytes that the keys and values of a :func:`dense_cache` take."""
    readers = {layer.reader for layer in cache.layers if isinstance(layer, FixedLayer)}
    return sum(reader.keys.nbytes + reader.values.nbytes for reader in readers)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise NotComputedError(
                f"{type(module).__name__} changes its attention logits ({name}), which this "
                "baseline does not compute"
            )
    reader: Reader = getattr(key, _READER)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return reader.attend(query, scale), None


def measured_attention(model: CateKVModel) -> contextlib.AbstractContextManager[None]:
    """Within it the model can run on a :func:`dense_cache`."""
    return attention_named(model.model, _NAME, _attention)
