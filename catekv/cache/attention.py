"""The attention function that lets a cache see queries, and the mask function that goes with it.

transformers calls ``cache.update(keys, values)`` and then the attention function with what update
returned. :class:`catekv.cache.layer.RaggedLayer` returns its keys with a :class:`Handle` attached;
the function below finds it there. Tensors without a handle (other caches, no cache) are passed on
to the base implementation untouched.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv import kernels
from catekv.cache.buffer import FixedTail
from catekv.errors import UserError
from catekv.kernels.dispatch import choose
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import RaggedPrefix
from catekv.kernels.ragged_decode import causal_tail_mask
from catekv.kernels.sparse_prefill import minference_attention
from catekv.methods.stores.base import DecodeStore

#: Base implementation -> registered name. A name contains "flash" if and only if its base is a
#: FlashAttention: transformers builds two-dimensional masks for such names.
NAMES = {
    "sdpa": "catekv",
    "eager": "catekv_eager",
    "flash_attention_2": "catekv_flash_attention_2",
    "flash_attention_3": "catekv_flash_attention_3",
}
#: Arguments of an attention call that change the result and that ragged layers do not implement.
UNSUPPORTED = ("position_bias",)
HANDLE = "_catekv_handle"
#: An additive mask hides what it gives this or less (float16 ends at -65504).
HIDDEN = -1e4
#: Queries per block when a chunk attends to a longer past without FlashAttention, and the bytes
#: that a block's additive mask may take; a long past means fewer queries per block.
QUERY_BLOCK = 512
MASK_BYTES = 16 * 2**20
#: Bytes of logits that a block of queries may take where a model's own formula holds them all.
LOGIT_BYTES = 128 * 2**20


class ObservingLayer(Protocol):
    """What the attention function needs of a cache layer."""

    prefix: RaggedPrefix | None
    store: DecodeStore | None

    @property
    def prefill(self) -> str: ...

    pending: bool

    def observe(
        self, queries: Tensor, valid: Tensor | None, scaling: float, form: LogitForm
    ) -> None: ...

    def attended(self) -> None: ...

    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None
    ) -> None: ...


@dataclass(frozen=True)
class Handle:
    """Attached to the keys that a layer's ``update`` returned; ``dense`` is its state then.

    ``values`` is what ``update`` returned beside the keys. ``fixed`` is given while a decode step
    with tails of fixed size runs; ``workspace`` is the scratch memory of the cache.
    """

    layer: ObservingLayer
    dense: bool
    values: Tensor
    fixed: FixedTail | None = None
    workspace: kernels.Workspace | None = None


def register_attention() -> None:
    """Make ``attn_implementation="catekv"`` (and the names of other bases) known to transformers.

    Idempotent. Models that use another cache, or none, compute with it exactly what they compute
    with the base implementation.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    for base, name in NAMES.items():
        AttentionInterface.register(name, _Attention(base))
        # Without a mask function under the same name transformers builds no mask at all and left
        # padding is ignored without an error.
        AttentionMaskInterface.register(name, _mask(base))


def base_attention(base: str, module: torch.nn.Module) -> Callable[..., Any]:
    """The function transformers itself would call for ``base``."""
    if base == "eager":
        for kind in type(module).__mro__:
            # a subclass elsewhere computes with the function of the model that it came from
            own = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
            if own is not None:
                return cast(Callable[..., Any], own)
        raise UserError(
            f"{type(module).__name__} has no eager attention function; load the model with "
            "attn_implementation='sdpa'"
        )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[base]


def attention_of(module: torch.nn.Module) -> Callable[..., Any]:
    """The attention function that the configuration of a module names now."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = module.config
    return cast(Callable[..., Any], ALL_ATTENTION_FUNCTIONS[config._attn_implementation])


def base_mask(base: str) -> Callable[..., Any]:
    """The mask function transformers itself would call for ``base``."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return ALL_MASK_ATTENTION_FUNCTIONS[base]


class ModuleView:
    """A module, or its configuration, with some attributes replaced for the reader of this view
    only."""

    def __init__(self, target: Any, **replaced: Any):
        self.__dict__.update(_target=target, **replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_target"], name)


@dataclass
class _Call:
    """One call of a layer's attention: states [batch, heads, tokens, head_dim], the mask that
    transformers made, and what the call says about its logits."""

    module: torch.nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float | None
    options: dict[str, Any]

    def __post_init__(self) -> None:
        width = self.query.shape[-1]
        self.scale = width**-0.5 if self.scaling is None else self.scaling
        self.form = _form(self.options)

    def refuse_what_changes_logits(self) -> None:
        """``UserError`` for options and masks that compressed layers do not implement."""
        for name in UNSUPPORTED:
            if self.options.get(name) is not None:
                raise UserError(
                    f"{type(self.module).__name__} uses {name!r}, which compressed layers do not "
                    "implement; run this model with its ordinary cache"
                )
        _refuse_bias(self.module, self.mask)


class _Attention:
    """The attention function of one base: the base itself for caches that are not ours and for
    dense prefixes, ragged decode over what a compressed layer kept."""

    def __init__(self, base: str):
        self.base = base
        self.flash = base.startswith("flash")

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        handle: Handle | None = getattr(key, HANDLE, None)
        watcher = _watcher.get()
        if watcher is not None:
            watcher(module, handle, value)
        if handle is None:
            if scaling is not None:
                options["scaling"] = scaling
            if self.base == "sdpa" and attention_mask is None and _is_causal(module, options):
                attention_mask = _mask_of_last(query.shape[2], key.shape[2], query.device)
            return self._stock(module, query, key, value, attention_mask, **options)
        call = _Call(module, query, key, value, attention_mask, scaling, options)
        call.refuse_what_changes_logits()
        if handle.dense:
            output = self._over_prompt(call, handle)
            seen = _last_row(call.mask, key.shape[2])
            handle.layer.observe(query, seen, call.scale, call.form)
            return output
        return self._over_kept(call, handle)

    def _stock(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """What transformers itself would compute with the base."""
        if self.base == "sdpa" and not _form(options).plain:
            return _by_own_formula(module, query, key, value, mask, **options)
        function = base_attention(self.base, module)
        if self.flash:
            # FlashAttention functions look their kernels up by the name in the configuration
            config = ModuleView(module.config, _attn_implementation=self.base)
            module = ModuleView(module, config=config)
        return function(module, query, key, value, mask, **options)

    def _over_prompt(self, call: _Call, handle: Handle) -> tuple[Tensor, Tensor | None]:
        """Attention while the prompt is read and nothing of the layer is compressed yet."""
        query, key, value, mask = call.query, call.key, call.value, call.mask
        if handle.layer.prefill == "minference" and query.shape[2] > 1:
            if not call.form.plain:
                raise UserError(
                    f"{type(call.module).__name__} has {call.form}, which prefill='minference' "
                    "does not compute; use prefill='dense'"
                )
            seen = _last_row(mask, key.shape[2])
            return minference_attention(query, key, value, call.scale, seen), None
        if call.form.plain and not self.flash and _past_is_causal(query, key, mask):
            return _past_and_self(query, key, value, call.scale, mask), None
        options = call.options
        return self._stock(call.module, query, key, value, mask, scaling=call.scaling, **options)

    def _over_kept(self, call: _Call, handle: Handle) -> tuple[Tensor, Tensor | None]:
        """Attention over the kept entries of a compressed layer and the tokens after them."""
        query, key, value, layer = call.query, call.key, call.value, handle.layer
        prefix: RaggedPrefix | QuantisedPrefix | None = layer.prefix
        assert prefix is not None
        first, store, blocks = layer.pending, layer.store, None
        layer.attended()
        workspace = handle.workspace if query.shape[2] == 1 else None
        if store is not None:
            if store.absorbs and not first:
                raise UserError(
                    f"{type(call.module).__name__} attends to another layer's keys, and this "
                    "method moves keys while decoding; use another method for this model"
                )
            prefix, blocks = store.read(query, call.scale, workspace)
        if handle.fixed is None:
            mask, length = _tail_mask(call.mask, query.shape[2], key.shape[2]), None
            if store is None and not self.flash and _on_torch(query.device):
                assert isinstance(prefix, RaggedPrefix)
                if prefix.uniform_length is not None:
                    return self._over_rectangle(call, prefix, mask)
        else:
            mask, length = handle.fixed.mask, handle.fixed.length
            if handle.fixed.used is not None:
                handle.fixed.used.append(prefix)
            if store is not None and store.periodic:
                store.record(query, handle.fixed.length)
        output = kernels.ragged_decode(
            query,
            prefix,
            key,
            value,
            call.scale,
            mask,
            tail_length=length,
            blocks=blocks,
            workspace=workspace,
            form=call.form,
        )
        if store is not None and handle.fixed is None:
            layer.absorb(query, key, value, call.scale, mask)
        return output.transpose(1, 2).contiguous(), None

    def _over_rectangle(
        self, call: _Call, prefix: RaggedPrefix, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Nothing is ragged: the very call that an ordinary cache would make, bit for bit."""
        query, options = call.query, call.options
        keys, values = prefix.dense()
        tail = call.key.shape[2]
        function = _by_own_formula if self.base == "eager" else self._stock
        return function(
            call.module,
            query,
            torch.cat([keys, call.key], dim=2),
            torch.cat([values, call.value], dim=2),
            _with_prefix(mask, query.shape[2], tail, keys.shape[2], query.device),
            scaling=call.scaling,
            **options,
        )


def _form(options: dict[str, Any]) -> LogitForm:
    """What an attention call says about its logits."""
    cap, sinks = options.get("softcap"), options.get("s_aux")
    if cap is None and sinks is None:
        return PLAIN
    return LogitForm(
        None if cap is None else float(cap), None if sinks is None else sinks.detach().flatten()
    )


def _by_own_formula(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The model's eager attention under a mask of sdpa, which knows neither soft caps nor sinks.

    Eager attention holds all logits: long prompts go through it in blocks of queries.
    """
    function = base_attention("eager", module)
    batch, heads, count, _ = query.shape
    tokens = key.shape[2]
    per_query = batch * heads * tokens * max(4, query.element_size())
    step = max(1, min(count, LOGIT_BYTES // max(1, per_query)))
    outputs = []
    for start in range(0, count, step):
        stop = min(start + step, count)
        extra = _additive(mask, start, stop, count, tokens, query)
        outputs.append(function(module, query[:, :, start:stop], key, value, extra, **options)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _additive(
    mask: Tensor | None, start: int, stop: int, count: int, tokens: int, like: Tensor
) -> Tensor:
    """Additive mask [batch or 1, 1, stop - start, tokens] of some of the last ``count`` queries,
    from any mask that transformers makes for sdpa."""
    if mask is not None and mask.ndim == 4:
        if mask.shape[2] != 1:
            mask = mask[:, :, start:stop]
        if mask.dtype != torch.bool:
            return mask
        visible = mask
    else:
        rows = torch.arange(tokens - count + start, tokens - count + stop, device=like.device)
        visible = (torch.arange(tokens, device=like.device) <= rows[:, None])[None, None]
        if mask is not None:
            visible = visible & mask[:, None, None, -tokens:].bool()
    extra = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return extra.masked_fill_(~visible, torch.finfo(like.dtype).min)


def _is_causal(module: torch.nn.Module, options: dict[str, Any]) -> bool:
    """What a call or its module says, as transformers' own sdpa function reads it."""
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _mask_of_last(queries: int, keys: int, device: torch.device) -> Tensor | None:
    """The causal mask of the last few queries, which torch would count from the first key on; None
    where it counts right.

    Layers that share keys may compute the last queries alone, and make sure of a mask only where
    the implementation has the name of sdpa itself (Gemma 4).
    """
    return causal_tail_mask(queries, keys, device) if 1 < queries < keys else None


def _on_torch(device: torch.device) -> bool:
    """Whether decode attention runs on the torch path there, and not through a kernel."""
    return choose("ragged_decode", device) is kernels.ragged_decode_torch


def _refuse_bias(module: torch.nn.Module, mask: Tensor | None) -> None:
    """``UserError`` if a mask says more than which keys are hidden: compressed layers know only
    whether a key is there."""
    if mask is None or mask.ndim != 4 or mask.device.type == "meta":
        return
    plain = mask.dtype == torch.bool or bool(((mask == 0) | (mask <= HIDDEN)).all())
    if plain and (mask.shape[1] == 1 or bool((mask == mask[:, :1]).all())):
        return
    raise UserError(
        f"{type(module).__name__} adds a bias to its attention mask (more than hidden and visible, "
        "as ALiBi and relative positions do), which compressed layers do not implement; run this "
        "model with its ordinary cache"
    )


def _visible(mask: Tensor) -> Tensor:
    """A mask as booleans: additive masks hold 0 where a query may look."""
    return mask if mask.dtype == torch.bool else mask == 0


def _last_row(mask: Tensor | None, columns: int) -> Tensor | None:
    """bool [batch, columns]: what the last query sees, that is, everything but padding."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask[:, -columns:].bool()
    return _visible(mask[:, 0, -1, -columns:])


def _tail_mask(mask: Tensor | None, query_tokens: int, tail: int) -> Tensor | None:
    """bool [batch, 1, query_tokens, tail] or None (causal), from any mask transformers passes.

    The mask may have been built just before a compression and then describes more than the tail.
    """
    if mask is None:
        return None
    if mask.ndim == 2:
        columns = mask[:, None, None, -tail:].bool()
        return causal_tail_mask(query_tokens, tail, mask.device) & columns
    return _visible(mask[..., -tail:])


def _with_prefix(
    tail_mask: Tensor | None, query_tokens: int, tail: int, prefix: int, device: torch.device
) -> Tensor | None:
    """The tail's mask with all-visible prefix columns before it, or None if nothing is hidden."""
    if tail_mask is None:
        if query_tokens == 1:
            return None
        tail_mask = causal_tail_mask(query_tokens, tail, device)
    ones = tail_mask.new_ones(*tail_mask.shape[:-1], prefix)
    return torch.cat([ones, tail_mask], dim=-1)


def _past_is_causal(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether :func:`_past_and_self` computes this call: a chunk behind a longer past, or a chunk
    whose mask only names the padding."""
    if mask is not None:
        return mask.ndim == 2
    if query.shape[2] == key.shape[2] and query.is_cuda:
        # torch would repeat the KV heads and hold all logits where FlashAttention cannot help
        return query.shape[1] != key.shape[1] and not _flash_serves(query, key, key)
    return 1 < query.shape[2] < key.shape[2]


def _flash_serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's FlashAttention takes these tensors (half precision on a recent GPU)."""
    from torch.backends.cuda import SDPAParams, can_use_flash_attention

    grouped = query.shape[1] != key.shape[1]
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, grouped))


def _past_and_self(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, valid: Tensor | None = None
) -> Tensor:
    """Causal attention of the last ``query_tokens`` positions without a [queries, keys] mask.

    Args:
        query, key, value: [batch, heads, tokens, head_dim]; KV heads are never repeated.
        valid: bool [batch, tokens], False on left padding; None without padding.

    Returns:
        [batch, query_tokens, query_heads, value_dim]; zeros for queries on padding.
    """
    batch, query_heads, query_tokens, head_dim = query.shape
    kv_heads, tokens = key.shape[1:3]
    if valid is not None:
        # a sequence without its padding needs no mask; a mask would hold [queries, keys] for each
        output = query.new_zeros(batch, query_tokens, query_heads, value.shape[-1])
        for row, padding in enumerate(valid.int().argmax(dim=-1).tolist()):
            skipped = max(0, padding - (tokens - query_tokens))
            own = slice(row, row + 1)
            output[own, skipped:] = _past_and_self(
                query[own, :, skipped:], key[own, :, padding:], value[own, :, padding:], scaling
            )
        return output
    if query.is_cuda and _flash_serves(query, key, value):
        from torch.nn.attention.bias import causal_lower_right

        # This bias calls FlashAttention exactly where _flash_serves says so, with the KV heads as
        # they are (checked in torch 2.11 and 2.13: the same file). Elsewhere it would fall back to
        # a mask of [queries, keys] and, for grouped heads, to logits of that size for every head.
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=causal_lower_right(query_tokens, tokens),
            scale=scaling,
            enable_gqa=query_heads != kv_heads,
        )
        return output.transpose(1, 2).contiguous()
    group = query_heads // kv_heads
    output = query.new_empty(batch, query_tokens, query_heads, value.shape[-1])
    past = tokens - query_tokens
    block = min(QUERY_BLOCK, MASK_BYTES // (group * tokens * query.element_size()))
    block = max(1, min(block, query_tokens))
    for start in range(0, query_tokens, block):
        stop = min(start + block, query_tokens)
        seen = past + stop
        # the query heads of a group become further queries of their KV head: keys stay unrepeated
        part = query[:, :, start:stop].reshape(batch, kv_heads, -1, head_dim)
        result = F.scaled_dot_product_attention(
            part,
            key[:, :, :seen],
            value[:, :, :seen],
            _lower_right(group, stop - start, seen, query),
            scale=scaling,
        )
        output[:, start:stop] = result.view(batch, query_heads, stop - start, -1).transpose(1, 2)
    return output


def _lower_right(group: int, size: int, seen: int, like: Tensor) -> Tensor:
    """Additive causal mask [group * size, seen] of the last ``size`` queries, once per head of a
    group; torch would turn a boolean mask into an additive one beside it."""
    mask = like.new_zeros(group, size, seen)
    own = causal_tail_mask(size, size, like.device)[0]
    mask[:, :, seen - size :].masked_fill_(~own, -torch.inf)
    return mask.view(-1, seen)


@dataclass(frozen=True)
class DeferredMask:
    """What transformers asked of the mask function, kept so that masks can be made per chunk.

    ``plain`` says that the mask is causal and hides nothing else but padding on the left and what
    lies outside a local window; ``padded`` that there is padding.
    """

    base: str
    arguments: dict[str, Any]
    plain: bool
    padded: bool

    def build(
        self, query_tokens: int, query_offset: int, kv_length: int, kv_offset: int, ragged: bool
    ) -> Tensor | None:
        """The mask of one chunk in one layer; None where the attention function needs none."""
        local = self.arguments.get("local_size")
        inside = local is None or kv_offset + kv_length <= local
        if ragged and self.plain and inside:
            if not self.padded and self.base != "eager":
                return None
            if self.padded and self.base == "sdpa":
                columns: Tensor = self.arguments["attention_mask"]
                return columns[:, kv_offset : kv_offset + kv_length].bool()
        arguments = dict(self.arguments)
        arguments.update(
            q_length=query_tokens,
            q_offset=query_offset,
            kv_length=kv_length,
            kv_offset=kv_offset,
        )
        return base_mask(self.base)(**arguments)


_deferring: contextvars.ContextVar[bool] = contextvars.ContextVar("catekv_deferring", default=False)


@contextlib.contextmanager
def deferred_masks() -> Iterator[None]:
    """Within it the mask functions return :class:`DeferredMask` (used by the chunked prefill)."""
    token = _deferring.set(True)
    try:
        yield
    finally:
        _deferring.reset(token)


#: Called with module, handle and values of every attention call.
Watcher = Callable[[torch.nn.Module, Handle | None, Tensor], None]
_watcher: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar(
    "catekv_watcher", default=None
)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Within it every attention call of this thread is shown to ``watcher`` first."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


_unmasked: contextvars.ContextVar[bool] = contextvars.ContextVar("catekv_unmasked", default=False)


@contextlib.contextmanager
def no_masks() -> Iterator[None]:
    """Within it the mask functions return None: a decode step with fixed tails needs no mask."""
    token = _unmasked.set(True)
    try:
        yield
    finally:
        _unmasked.reset(token)


def _mask(base: str) -> Callable[..., Any]:
    def mask(*arguments: Any, **options: Any) -> Any:
        if _unmasked.get():
            return None
        if not _deferring.get() or arguments:
            return base_mask(base)(*arguments, **options)
        from transformers.masking_utils import causal_mask_function

        local = options.get("local_size") is not None
        function = options.get("mask_function", causal_mask_function)
        plain = (local or function is causal_mask_function) and options.get(
            "allow_is_causal_skip", True
        )
        padding = options.get("attention_mask")
        if padding is None or bool(padding.all()):
            return DeferredMask(base, options, plain, False)
        ordered = padding.ndim == 2 and bool((padding[:, 1:] >= padding[:, :-1]).all())
        return DeferredMask(base, options, plain and ordered, True)

    return mask
