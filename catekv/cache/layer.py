"""One attention layer of the cache: dense while the prompt comes in, ragged afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from catekv import kernels
from catekv.cache.attention import HANDLE, Handle
from catekv.cache.buffer import FixedTail, TokenBuffer
from catekv.cache.sharded import select_here
from catekv.errors import UserError
from catekv.kernels import Workspace
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.ragged import RaggedPrefix, from_rows
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.stores.base import DecodeStore, WholePrefix
from catekv.models.padding import refuse_unless_left_padding
from catekv.models.rotation import Rotation, rotation_of


@dataclass
class CacheSettings:
    """What all layers of one cache share. Layers hold this and never the cache itself: a deep copy
    of the cache must not keep pointing at the original.

    ``trigger`` says when a layer compresses: ``count`` (as soon as ``prefill_tokens`` were seen),
    ``auto`` (at the end of the first forward of several tokens), ``lazy`` (before the first forward
    of one token) or ``hold`` (never: :class:`catekv.model.DensePrompt` does it). ``needs`` is what
    layers record of the prompt; with ``needs.all_layers`` no layer compresses by itself.

    ``projections`` [query_heads, head_dim, hidden_size] of every layer are views of the model's
    weights. ``workspace`` is the scratch memory of decode steps. ``fixed_tail`` is set while a
    :class:`catekv.decode.step.DecodeStep` runs. ``onlooker`` is set while the model repeats its
    prompt (:mod:`catekv.prefill.repeating`): it is shown the queries of layers, which stay dense
    and record nothing.
    """

    method: Method | None
    num_layers: int
    kv_heads: int
    needs: Needs
    trigger: str
    config: Any
    prefill_tokens: int | None = None
    compress_seconds: float = 0.0
    description: dict[str, Any] = field(default_factory=dict)
    projections: tuple[Tensor, ...] = ()
    workspace: Workspace = field(default_factory=Workspace)
    fixed_tail: FixedTail | None = None
    onlooker: Callable[[RaggedLayer, Tensor], None] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheSettings:
        # methods are immutable; two caches may decode at the same time and share no scratch
        return replace(
            self, description=dict(self.description), workspace=Workspace(), fixed_tail=None,
            onlooker=None,
        )  # fmt: skip


class RaggedLayer(CacheLayerMixin):
    """One attention layer: dense until compressed, then an immutable prefix and a dense tail."""

    is_compileable = False
    is_sliding = False
    # transformers asks this before decoding speculatively, which rolls back into the prefix
    is_croppable = False
    supports_early_init = False

    def __init__(self, index: int, settings: CacheSettings):
        super().__init__()
        self.index = index
        self.settings = settings
        self._clear()

    def _clear(self) -> None:
        self.buffer = TokenBuffer()
        self.prefix: RaggedPrefix | None = None
        self.store: DecodeStore | None = None
        self.queries: Tensor | None = None
        self.column_sums: Tensor | None = None
        self.hidden_states: Tensor | None = None
        self.attention_inputs: Tensor | None = None
        self.repeat_scores: dict[Repeat, Tensor] = {}
        self.moments: QueryMoments | None = None
        self.valid: Tensor | None = None
        self.padding: list[int] = []
        self.seen = 0
        self.scaling = 1.0
        self.form: LogitForm = PLAIN
        self.query_heads = 0
        self.pending = False
        self.is_initialized = False

    @property
    def compressed(self) -> bool:
        return self.prefix is not None

    @property
    def prefill(self) -> str:
        """How the prompt is attended to while it comes in."""
        method = self.settings.method
        return "dense" if method is None else method.prefill_attention

    @property
    def tail_length(self) -> int:
        """Tokens stored densely: everything before compression, the newer ones after it."""
        return self.buffer.length

    @property
    def dense_tokens(self) -> int:
        """Uncompressed context tokens held right now."""
        return 0 if self.compressed else self.buffer.length

    def lengths(self) -> Tensor:
        """Stored entries per row, int64 [batch, kv_heads]."""
        if self.store is not None:
            return self.store.lengths() + self.tail_length
        if self.prefix is not None:
            return self.prefix.lengths.long() + self.tail_length
        if self.buffer.keys is None:
            return torch.zeros(0, 0, dtype=torch.int64)
        return torch.full(self.buffer.keys.shape[:2], self.tail_length, dtype=torch.int64)

    def padding_per_sequence(self) -> list[int]:
        """Padding columns among the compressed context, per sequence."""
        return self.padding or [0] * self.lengths().shape[0]

    def tensors(self) -> list[Tensor]:
        recorded = [self.queries, self.column_sums, self.hidden_states, self.valid]
        recorded += [self.attention_inputs, *self.repeat_scores.values()]
        recorded += self.moments.tensors() if self.moments is not None else ()
        own = self.buffer.tensors() + [tensor for tensor in recorded if tensor is not None]
        if self.store is not None:
            return own + self.store.tensors()
        return own + ([] if self.prefix is None else self.prefix.tensors())

    def full_bytes(self) -> int:
        """Bytes of the keys and values that an uncompressed layer would hold."""
        lengths = self.lengths()
        if self.prefix is not None:
            keys, values = self.prefix.keys, self.prefix.values
        elif self.buffer.keys is not None and self.buffer.values is not None:
            keys, values = self.buffer.keys, self.buffer.values
        else:
            return 0
        per_token = (keys.shape[-1] + values.shape[-1]) * keys.element_size()
        return lengths.numel() * self.seen * per_token

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # models that ask an initialised layer how many keys it holds (Mllama) find tensors here
        self.keys, self.values = key_states.new_empty(0), value_states.new_empty(0)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values [batch, kv_heads, tokens, dim]; return what to attend to.

        The returned keys carry a handle by which the attention function finds this layer.
        """
        self._refuse_unseen()
        fixed = self.settings.fixed_tail
        if fixed is not None:

            def write(tail_keys: Tensor, tail_values: Tensor, length: Tensor) -> None:
                kernels.append(tail_keys, tail_values, key_states, value_states, length)

            return self.append_by(write)[1:]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        single = key_states.shape[2] == 1 and not self.settings.needs.all_layers
        if self.settings.trigger == "lazy" and single and self.dense_tokens:
            self.compress()
        reserve = 0 if self.compressed else self.settings.prefill_tokens or 0
        self.buffer.append(key_states, value_states, reserve, exact=not self.compressed)
        self.seen += key_states.shape[2]
        self.pending = True
        keys, values = self.buffer.views()
        handle = Handle(self, not self.compressed, values, workspace=self.settings.workspace)
        setattr(keys, HANDLE, handle)
        return keys, values

    def _refuse_unseen(self) -> None:
        if self.pending:
            raise UserError(
                f"layer {self.index} never saw the queries of an earlier forward: the model does "
                "not use catekv attention; call catekv.register_attention() and load it with "
                'attn_implementation="catekv" (or use CateKVModel)'
            )

    def append_by(
        self, write: Callable[[Tensor, Tensor, Tensor], Any]
    ) -> tuple[Any, Tensor, Tensor]:
        """Let the newest token be written into the reserved tail, where the device says.

        Touches no number of the host: :meth:`advance` does that after the step.

        Args:
            write: called with the buffers of keys and values and the length as
                :func:`catekv.kernels.append` takes them.

        Returns:
            What ``write`` returns, and the whole tail to attend to, as :meth:`update` does.
        """
        self._refuse_unseen()
        fixed, keys, values = self.settings.fixed_tail, self.buffer.keys, self.buffer.values
        assert fixed is not None
        assert keys is not None
        assert values is not None
        written = write(keys, values, fixed.length)
        self.pending = True
        keys = keys.view(keys.shape)
        handle = Handle(self, False, values, fixed=fixed, workspace=self.settings.workspace)
        setattr(keys, HANDLE, handle)
        return written, keys, values

    def reserve_tail(self, capacity: int) -> None:
        """Give the tail of a compressed layer tensors of (at least) ``capacity`` columns, which
        stay where they are as long as no more tokens come."""
        prefix = self.prefix
        if prefix is None:
            raise UserError("only a compressed cache has a tail; feed the whole context first")
        extents = (prefix.batch, prefix.kv_heads, 0)
        self.buffer.reserve(
            capacity,
            prefix.keys.new_empty(*extents, prefix.keys.shape[-1]),
            prefix.values.new_empty(*extents, prefix.values.shape[-1]),
        )

    def advance(self, tokens: int) -> None:
        """Count the tokens that a step with fixed tails has written."""
        self.buffer.length += tokens
        self.seen += tokens

    def attended(self) -> None:
        """Called by the attention function once it has met this layer's keys."""
        self.pending = False

    def observe(
        self, queries: Tensor, valid: Tensor | None, scaling: float, form: LogitForm = PLAIN
    ) -> None:
        """Called by the attention function after attending while dense.

        Args:
            queries: [batch, query_heads, query_tokens, head_dim] of this forward.
            valid: bool [batch, tokens seen], False on padding; None without padding.
            scaling: factor of the attention logits.
            form: what follows between them and the softmax.
        """
        if not self.pending:  # a layer that shares another layer's keys and values
            return
        self.pending = False
        if self.settings.onlooker is not None:
            self.settings.onlooker(self, queries)
            return
        self.scaling, self.form = scaling, form
        self.query_heads = queries.shape[1]
        if valid is not None:
            self.valid = valid
        boundary = self.settings.prefill_tokens or self.seen
        before = min(queries.shape[2], queries.shape[2] + boundary - self.seen)
        if before > 0:
            self._record(queries[:, :, :before])
        # with all_layers the cache compresses all of them when the forward is over
        if self.due(queries.shape[2]) and not self.settings.needs.all_layers:
            self.compress()

    def due(self, query_tokens: int) -> bool:
        """Whether the whole context is there, after a forward of ``query_tokens`` tokens."""
        trigger, counted = self.settings.trigger, self.settings.prefill_tokens
        if trigger == "count" and counted is not None:
            return self.seen >= counted
        return trigger == "auto" and query_tokens > 1

    def _record(self, queries: Tensor) -> None:
        """Keep what the method wants to know of these newest context queries."""
        needs = self.settings.needs
        if needs.window:
            # cloned: a slice would keep the whole query tensor alive
            newest = queries[:, :, max(0, queries.shape[2] - needs.window) :].clone()
            if self.queries is not None and newest.shape[2] < needs.window:
                newest = torch.cat([self.queries, newest], dim=2)
                newest = newest[:, :, -needs.window :].contiguous()
            self.queries = newest
        if needs.column_sums:
            boundary = min(self.settings.prefill_tokens or self.seen, self.seen)
            keys = self.buffer.views()[0][:, :, :boundary]
            valid = None if self.valid is None else self.valid[:, :boundary]
            sums = kernels.column_sums(queries, keys, self.scaling, valid, self.form)
            if self.column_sums is not None:
                sums[:, :, : self.column_sums.shape[-1]] += self.column_sums
            self.column_sums = sums
        if needs.query_moments:
            self._count(queries)

    def _count(self, queries: Tensor) -> None:
        """Add these newest context queries to the moments."""
        end = min(self.settings.prefill_tokens or self.seen, self.seen)
        valid = None if self.valid is None else self.valid[:, :end]
        try:
            rotation = self._rotation(end, valid)
        except UserError:
            return  # the method says so when it asks for the rotation; others go on
        if self.moments is None:
            self.moments = QueryMoments.none_yet(queries)
        newest = None if valid is None else valid[:, end - queries.shape[2] :]
        self.moments.add(queries, rotation, newest)

    def record_hidden(self, hidden_states: Tensor) -> None:
        """Keep what the decoder layer reads [batch, tokens, hidden_size] until compression."""
        self.hidden_states = self._continued(self.hidden_states, hidden_states)

    def record_inputs(self, states: Tensor) -> None:
        """Keep what the layer's attention reads [batch, tokens, hidden_size] until compression."""
        self.attention_inputs = self._continued(self.attention_inputs, states)

    def _continued(self, past: Tensor | None, states: Tensor) -> Tensor | None:
        if self.compressed:
            return past
        # cloned: the layer-by-layer prefill writes each layer's output over its input
        states = states.detach().clone()
        return states if past is None else torch.cat([past, states], dim=1)

    def observed(self, needs: Needs | None = None) -> tuple[Observed, Tensor | None]:
        """The dense context as a method with these ``needs`` sees it (default: all that was
        recorded), and its padding mask (None: no padding)."""
        needs = self.settings.needs if needs is None else needs
        keys, values = self.buffer.views()
        tokens = min(self.settings.prefill_tokens or self.seen, self.seen)
        queries = self.queries
        if queries is None:
            queries = keys.new_empty(keys.shape[0], self.query_heads, 0, keys.shape[-1])
        else:
            queries = queries[:, :, max(0, queries.shape[2] - needs.window) :]
        missing = min(needs.window, tokens) - queries.shape[2]
        if missing > 0:
            raise UserError(
                f"{missing} of the newest {min(needs.window, tokens)} queries, by which this "
                "method chooses, are gone with the tokens that were taken back; feed as many "
                "tokens as were taken back, or the whole prompt to a new cache"
            )
        valid = None
        if self.valid is not None and not bool(self.valid[:, :tokens].all()):
            valid = self.valid[:, :tokens]
            refuse_unless_left_padding(valid)
        self._refuse_without(needs)
        observed = Observed(
            queries,
            keys[:, :, :tokens],
            values[:, :, :tokens],
            self.scaling,
            self.index,
            self.settings.num_layers,
            column_sums=self.column_sums if needs.column_sums else None,
            hidden_states=_first(self.hidden_states if needs.hidden_states else None, tokens),
            rotation=self._rotation(tokens, valid) if needs.rotation else None,
            form=self.form,
            query_moments=self.moments if needs.query_moments else None,
            output_projection=(
                self.settings.projections[self.index] if needs.output_projection else None
            ),
            attention_inputs=_first(
                self.attention_inputs if needs.attention_inputs else None, tokens
            ),
            repeat_scores={way: self.repeat_scores[way][..., :tokens] for way in needs.repeats},
        )
        return observed, valid

    def _refuse_without(self, needs: Needs) -> None:
        """``UserError`` if what only this package's prefill records is needed and not there."""
        lacking = {
            "hidden states": needs.hidden_states and self.hidden_states is None,
            "the states that attention reads": (
                needs.attention_inputs and self.attention_inputs is None
            ),
            "the output projection": needs.output_projection and not self.settings.projections,
            "the model repeating its prompt": any(
                way not in self.repeat_scores for way in needs.repeats
            ),
        }
        for what, missing in lacking.items():
            if missing:
                raise UserError(
                    f"this method looks at {what}, which only CateKVModel.prefill and observe "
                    "record; prefill with them and then generate"
                )

    def _rotation(self, tokens: int, valid: Tensor | None) -> Rotation:
        lengths = [tokens] if valid is None else valid.sum(dim=-1).tolist()
        shortest, longest = (
            rotation_of(self.settings.config, length, self.index)
            for length in (min(lengths), max(lengths))
        )
        if not torch.equal(shortest.inverse_frequencies, longest.inverse_frequencies):
            raise UserError(
                f"prompts of {min(lengths)} and {max(lengths)} tokens are rotated by different "
                "frequencies, and this method turns stored keys; prefill them apart"
            )
        assert self.buffer.keys is not None
        return longest.to(self.buffer.keys.device)

    def method(self) -> Method:
        """The cache's method.

        Raises:
            UserError: there is none, or no prompt that it could compress.
        """
        method = self.settings.method
        if method is None:
            raise UserError("this cache has no method to compress with; make it with one")
        if self.pending or not self.seen or self.buffer.keys is None:
            raise UserError(f"layer {self.index} has seen no prompt that it could compress")
        return method

    def compress(self) -> None:
        """Let the method choose among the context seen so far and free the rest; tokens beyond
        ``prefill_tokens`` become the tail."""
        method = self.method()
        start = time.perf_counter()
        observed, valid = self.observed()
        method, (selection,) = select_here(method, [observed], valid, self.settings.kv_heads)
        self.adopt(method, observed, valid, selection)
        self.settings.compress_seconds += time.perf_counter() - start

    def adopt(
        self, method: Method, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> None:
        """Store what was selected of this layer and let go of the dense context."""
        prefix = selection.packed(observed.keys, observed.values)
        store = method.open_store(prefix, observed, valid, selection)
        if store is not None and store.plain_logits and not observed.form.plain:
            raise UserError(
                f"{method.name} computes attention while decoding without {observed.form}, which "
                "this model has; use another method, or this one without its steps while decoding"
            )
        tail = TokenBuffer()
        if self.buffer.length > observed.tokens:
            keys, values = self.buffer.views()
            part = slice(observed.tokens, None)
            tail.append(keys[:, :, part].clone(), values[:, :, part].clone())
        self.hold(prefix, store)
        self.padding = [] if valid is None else (~valid).sum(dim=-1).tolist()
        self.buffer = tail
        self.queries = self.column_sums = self.hidden_states = self.valid = self.moments = None
        self.attention_inputs, self.repeat_scores = None, {}

    def hold(self, prefix: RaggedPrefix, store: DecodeStore | None) -> None:
        """Be compressed: to a prefix, or to what a store made of it."""
        # a store holds the entries itself; what stays of the prefix is its shape
        self.prefix = prefix if store is None else _without_entries(prefix)
        self.store = store

    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None
    ) -> None:
        """Called by the attention function after attending: the store may take over tail tokens.

        Args:
            keys, values: the tail; mask: bool [batch or 1, 1, query_tokens, tail] or None.
        """
        if self.store is None:
            return
        visible = None if mask is None else mask[:, 0, -1].expand(queries.shape[0], -1)
        self._release(self.store.absorb(queries, keys, values, scaling, visible))

    def fold(
        self, visible: Tensor | None, new: Sequence[int] | None = None, at_once: bool = False
    ) -> None:
        """Hand the whole tail to a periodic store, between two steps; see
        :meth:`DecodeStore.take_over`. ``new`` None: it is taken to have come at once."""
        assert self.store is not None
        if not self.tail_length:
            self.reserve_tail(0)
        keys, values = self.buffer.views()
        batch, tail = keys.shape[0], keys.shape[2]
        if visible is not None and bool(visible.all()):
            visible = None
        if new is None:
            new = [tail] * batch if visible is None else visible.sum(dim=-1).tolist()
        self.store.take_over(keys, values, visible, new, at_once)
        self._release(tail)

    def _release(self, tokens: int) -> None:
        """Forget the tail's first tokens, and room that a long question took."""
        self.buffer.drop_first(tokens)
        most = self.store.longest_tail if self.store is not None else 0
        if most and not self.buffer.length and self.buffer.capacity > 2 * most:
            self.buffer = TokenBuffer()

    @property
    def attended_prefix(self) -> RaggedPrefix | None:
        """What steps read whole: the prefix, or what a store holds in its place."""
        return self.store.prefix if isinstance(self.store, WholePrefix) else self.prefix

    def get_seq_length(self) -> int:
        """True number of columns ever fed, padding included: positions continue from it."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys a mask must describe: the tail once compressed. The prefix
        needs no mask, because padding is never selected into it."""
        return self.tail_length + query_length, self.seen - self.tail_length

    def crop(self, tokens: int | Tensor) -> None:
        """Take back the newest tokens: a negative number is how many, a positive one (older
        transformers) how many to keep. ``UserError`` if compressed ones would be needed again."""
        tokens = int(tokens)
        remove = -tokens if tokens < 0 else max(0, self.seen - tokens) if tokens else 0
        if not remove:
            return
        if self.store is not None and not self.store.croppable:
            raise UserError(
                f"cannot take back {remove} tokens: the method looks at the newest queries, and "
                "older ones are gone; keep a fork of the context from before"
            )
        if remove > self.tail_length:
            raise UserError(
                f"cannot take back {remove} tokens: only the {self.tail_length} tokens since "
                "compression are stored as they were; keep a fork of the context from before"
            )
        if self.moments is not None or self.column_sums is not None:
            raise UserError(
                "tokens cannot be taken back from a prompt whose queries have been added up; feed "
                "it whole, or use a method that needs no moments and no column sums of queries"
            )
        self.take_back(remove)
        if self.queries is not None:
            self.queries = self.queries[:, :, : max(0, self.queries.shape[2] - remove)]
        if self.valid is not None:
            self.valid = self.valid[:, : self.seen]
        self.hidden_states = _first(self.hidden_states, self.seen)
        self.attention_inputs = _first(self.attention_inputs, self.seen)

    def take_back(self, tokens: int) -> None:
        """Forget the entries of the newest tokens, and nothing that was recorded."""
        self.buffer.crop(tokens)
        self.seen -= tokens

    def _select(self, indices: Tensor) -> None:
        if not self.seen:
            return
        host = indices.tolist()
        self.buffer.select(indices)
        if self.store is not None:
            self.store = self.store.select_rows(host)
        if self.prefix is not None:
            self.prefix = self.prefix.select_rows(host)
        if self.padding:
            self.padding = [self.padding[b] for b in host]
        if self.queries is not None:
            self.queries = self.queries[indices.to(self.queries.device)]
        if self.valid is not None:
            self.valid = self.valid[indices.to(self.valid.device)]
        if self.column_sums is not None:
            self.column_sums = self.column_sums[indices.to(self.column_sums.device)]
        if self.hidden_states is not None:
            self.hidden_states = self.hidden_states[indices.to(self.hidden_states.device)]
        if self.attention_inputs is not None:
            self.attention_inputs = self.attention_inputs[indices.to(self.attention_inputs.device)]
        self.repeat_scores = {
            way: scores[indices.to(scores.device)] for way, scores in self.repeat_scores.items()
        }
        if self.moments is not None:
            self.moments = self.moments.rows(indices.to(self.moments.count.device))

    def _batch(self) -> int:
        return self.lengths().shape[0]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(self._batch())[indices.cpu()])

    def reset(self) -> None:
        self._clear()

    def offload(self) -> None:
        raise UserError("a compressed cache cannot be offloaded; make the cache without offloading")

    prefetch = offload


def _first(states: Tensor | None, tokens: int) -> Tensor | None:
    return None if states is None else states[:, :tokens]


def _without_entries(prefix: RaggedPrefix) -> RaggedPrefix:
    """A prefix of the same batch, heads and types that stores nothing."""
    rows = [(0, 0)] * len(prefix.host_rows)
    return from_rows(
        prefix.keys[:0].clone(), prefix.values[:0].clone(), None, rows, prefix.kv_heads
    )
