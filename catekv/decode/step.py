"""One decode step over a compressed cache, recorded as a CUDA graph where that is possible.

A forward of one token launches several hundred small kernels; at short lengths the host needs
longer for that than the GPU for the work. A recorded step is one launch. It needs tails of fixed
size, a tail length that the device counts itself, and nothing that the host decides on the way.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from catekv.cache import plain_layers
from catekv.cache.attention import no_masks
from catekv.cache.buffer import FixedTail
from catekv.cache.cache import RaggedCache
from catekv.cache.continuation import feed
from catekv.cache.layer import RaggedLayer
from catekv.decode import graph as capture
from catekv.decode import rotary
from catekv.decode.fused import FUSED_MODES, FusedStep, chosen_step
from catekv.decode.graph import Recording
from catekv.errors import UserError
from catekv.models.compat import cache_argument
from catekv.models.sharding import is_sharded, is_tensor_parallel

#: Steps for which a recording must hold.
LEAST_PERIOD = 16

#: Values of the ``graph`` argument.
GRAPH_MODES = ("auto", "on", "off")


class EagerStep:
    """One decode step as an ordinary forward: tails grow, transformers makes the masks.

    Args:
        model: a transformers model with catekv attention.
        cache: its compressed cache; receives the tokens.
        attention_mask: [batch, columns the cache has seen], 0 on padding; None: no padding.
    """

    def __init__(self, model: Any, cache: RaggedCache, attention_mask: Tensor | None = None):
        self.model = model
        self.cache = cache
        self._mask = attention_mask

    def __call__(self, tokens: Tensor) -> Tensor:
        """Feed tokens [batch, 1]; return logits [batch, vocabulary]."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        return feed(self.model, tokens, self.cache, self._mask)[:, -1]


class DecodeStep:
    """One decode step with tails of fixed size, on CUDA recorded as a graph and replayed.

    Where tails of fixed size are impossible (layers that are not compressed, a model on several
    devices), each call is an :class:`EagerStep`; where only the recording is, each call runs the
    same forward without it. ``reason`` says which of both, and why.

    When a tail is full it grows by doubling, and the step is recorded again. What happens to the
    cache between two calls is noticed and refused until :meth:`restart`.

    Args:
        model: a transformers model with catekv attention.
        cache: its compressed cache; receives the tokens. A fork of it is an ordinary cache.
        capacity: tokens after the context to make room for, those already there included.
        graph: ``auto`` records if possible, ``on`` raises if not, ``off`` does not try.
        attention_mask: [batch, columns the cache has seen], 0 on padding; None: no padding.
        fused_step: whether the step is computed in few launches (:mod:`catekv.decode.fused`) and
            not by the model's own forward: ``auto`` on a CUDA device where the model allows it,
            ``on`` raises where it does not, ``off`` never.

    Attributes:
        captured: whether calls replay a graph. reason: why not, None if they do.
        fused: whether the step is fused. fused_reason: why not, None if it is.
        graph_bytes: device memory reserved by the graph.
        capture_seconds: time spent on recording so far.
        capacity: columns of the tails now.

    Raises:
        UserError: ``graph="on"`` and the step cannot be recorded; ``fused_step="on"`` and it cannot
            be fused; a cache that is not compressed.
    """

    def __init__(
        self,
        model: Any,
        cache: RaggedCache,
        capacity: int,
        *,
        graph: str = "auto",
        attention_mask: Tensor | None = None,
        fused_step: str = "auto",
    ):
        if graph not in GRAPH_MODES:
            raise UserError(f"unknown graph mode {graph!r}; use {', '.join(GRAPH_MODES)}")
        if fused_step not in FUSED_MODES:
            raise UserError(f"unknown fused_step {fused_step!r}; use {', '.join(FUSED_MODES)}")
        if not cache.compressed:
            raise UserError("a decode step needs a compressed cache; feed the whole context first")
        if capacity < 1:
            raise UserError(f"capacity {capacity} must be at least 1")
        self.model = model
        self.cache = cache
        self.graph = graph
        self.fused_step = fused_step
        self._chosen: FusedStep | str = "the step is an ordinary forward"
        self.reason: str | None = None
        self.capture_seconds = 0.0
        self.capacity = 0
        self._recording: Recording | None = None
        self._kept: list[Any] = []
        self._scratch: list[Any] = []
        self._wanted = False
        # padding columns of every sequence's tail; None: none
        self._hidden: list[int] | None = None
        self._eager: EagerStep | None = None
        obstacle = why_not_fixed_tails(model, cache)
        if obstacle is not None:
            self.reason = obstacle
            if graph == "on":
                raise UserError(f"the decode step cannot be recorded: {obstacle}; use graph='auto'")
            if fused_step == "on":
                raise UserError(
                    f"the decode step cannot be fused: {obstacle}; use fused_step='auto'"
                )
            self._eager = EagerStep(model, cache, attention_mask)
            return
        prefix = cache.ragged_layers[0].prefix
        assert prefix is not None
        self.device = prefix.keys.device
        self._boundaries = rotary.boundaries(model)
        self._stretch = 0
        # what the host knows of the cache: columns seen, those in the tail, the largest position
        self._seen = self._length = self._position = 0
        with _computing():
            self._tokens = torch.zeros(prefix.batch, 1, dtype=torch.long, device=self.device)
            self._positions = torch.zeros_like(self._tokens)
            self._tail = FixedTail(torch.zeros(1, dtype=torch.int32, device=self.device), None)
        self.restart(attention_mask, capacity)
        self.reason = "graph='off' was asked for"
        if graph != "off":
            self.capture()

    @property
    def captured(self) -> bool:
        return self._recording is not None

    @property
    def graph_bytes(self) -> int:
        return 0 if self._recording is None else self._recording.nbytes

    @property
    def fused(self) -> bool:
        return isinstance(self._chosen, FusedStep)

    @property
    def fused_reason(self) -> str | None:
        return self._chosen if isinstance(self._chosen, str) else None

    @property
    def fixed(self) -> bool:
        """Whether the tails are of fixed size, recorded or not."""
        return self._eager is None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Feed one token per sequence.

        Args:
            tokens: int64 [batch, 1].

        Returns:
            Logits [batch, vocabulary], overwritten by the next call.

        Raises:
            UserError: the cache was changed by others since the last call; see :meth:`restart`.
        """
        if self._eager is not None:
            return self._eager(tokens)
        if not self._undisturbed():
            raise UserError(
                "the cache was fed, cropped or reordered outside of its decode step; call "
                "restart() before the next step"
            )
        with _computing():
            if self._length == self.capacity:
                self._grow()
            if self._stretch != bisect_right(self._boundaries, self._position):
                self._drop()
            if self._wanted and self._recording is None:
                self._record()
            self._tokens.copy_(tokens)
            # stays so if the step fails half-way: nothing goes on from there unnoticed
            seen, self._seen = self._seen, -1
            logits = self._run() if self._recording is None else self._recording.replay()
            for layer in self._layers:
                layer.advance(1)
            self._seen = seen + 1
            self._length += 1
            self._position += 1
            return self._folded(logits)

    def _folded(self, logits: Tensor) -> Tensor:
        """Between two steps: let the method choose among what the layers hold, if it is time."""
        if not self.cache.tails_due(self._hidden):
            return logits
        logits = logits.clone()  # they may lie in the memory of the recording
        mask = self._tail.mask
        visible = None if mask is None else mask[:, 0, 0, : self._length]
        self.cache.fold(visible, new=1)
        rooms = [layer.buffer.capacity for layer in self._layers]
        self.capacity = max(int(self.cache.longest_tail), *rooms)
        self.cache.reserve_tails(self.capacity)
        self._length = 0
        self._place(self._positions, None)
        return logits

    def capture(self) -> bool:
        """Record the step now, if it is not and can be; returns whether it is recorded.

        A step that was made with ``graph="off"`` may be recorded later, when it is clear that
        enough steps follow.
        """
        if self._eager is None and self._recording is None:
            with _computing():
                self._record()
        return self.captured

    def restart(self, attention_mask: Tensor | None = None, capacity: int = 1) -> None:
        """Go on from the present state of the cache, whatever was done to it since the last call.

        The recording stays if it is still right: the same context, and tails that did not have to
        grow.

        Args:
            attention_mask: [batch, columns the cache has seen], 0 on padding; None: no padding.
            capacity: room to make, as on construction.

        Raises:
            UserError: a mask that does not fit what the cache has seen.
        """
        seen = self.cache.get_seq_length()
        if attention_mask is not None and attention_mask.shape[-1] != seen:
            raise UserError(
                f"attention_mask describes {attention_mask.shape[-1]} columns, the cache has seen "
                f"{seen}; pass the mask of everything fed so far"
            )
        if self._eager is not None:
            self._eager = EagerStep(self.model, self.cache, attention_mask)
            return
        with _computing():
            # before the places of weights are noted: it may put them side by side
            chosen = chosen_step(self.model, self.fused_step)
            if chosen != self._chosen:
                self._drop()
            self._chosen = chosen
            self._layers = self.cache.ragged_layers
            for layer in self._layers:
                layer.attended()  # a step may have failed between storing and attending
            length = self._layers[0].tail_length
            room = max(capacity, length + 1, *(layer.buffer.capacity for layer in self._layers))
            self.cache.reserve_tails(room)
            self._seen, self._length, self.capacity = seen, length, room
            prefix = self._layers[0].prefix
            assert prefix is not None
            positions = self._positions.new_full((prefix.batch, 1), seen)
            self._position = seen
            hidden: Tensor | None = None
            if attention_mask is not None:
                attention_mask = attention_mask.to(self.device)
                positions = attention_mask.sum(dim=-1, keepdim=True)
                self._position = int(positions.max())
                columns = attention_mask[:, seen - length :].bool()
                hidden = None if bool(columns.all()) else columns
            self._place(positions, hidden)
            if self._recording is None:
                self._wanted = self.graph != "off"

    def _place(self, positions: Tensor, hidden: Tensor | None) -> None:
        """Bring the device's numbers in line with the cache; ``hidden`` [batch, tail] is False on
        padding of the tail."""
        held: list[Any] = [
            item
            for layer in self._layers
            for item in (layer.attended_prefix, layer.store, layer.buffer.keys, layer.buffer.values)
        ]
        # weights that were moved or replaced since would be read where they were
        held += [parameter.data_ptr() for parameter in self.model.parameters()]
        same = len(held) == len(self._kept) and all(
            new is old or (isinstance(new, int) and new == old)
            for new, old in zip(held, self._kept, strict=True)
        )
        mask = self._tail.mask
        fits = mask is not None and mask.shape[-1] == self.capacity
        if not same or (hidden is not None and not fits):
            self._drop()
            mask = None
        if len(positions) != len(self._tokens):
            self._tokens = self._tokens.new_zeros(len(positions), 1)
            self._positions = torch.zeros_like(self._tokens)
        if hidden is not None and mask is None:
            extents = (len(positions), 1, 1, self.capacity)
            mask = torch.ones(extents, dtype=torch.bool, device=self.device)
        if mask is not None:
            mask.fill_(True)
            if hidden is not None:
                mask[:, 0, 0, : self._length] = hidden
        self._kept = held
        self._hidden = None if hidden is None else (~hidden).sum(dim=-1).tolist()
        self._tail = FixedTail(self._tail.length, mask)
        self._tail.length.fill_(self._length)
        self._positions.copy_(positions)

    def _undisturbed(self) -> bool:
        layers, kept = self._layers, self._kept
        return all(
            layer.seen == self._seen
            and layer.attended_prefix is kept[4 * index]
            and layer.buffer.keys is kept[4 * index + 2]
            for index, layer in enumerate(layers)
        )

    def _grow(self) -> None:
        """Twice the room. The recording, which works on the old tensors, goes."""
        hidden = None if self._tail.mask is None else self._tail.mask[:, 0, 0, : self._length]
        self.capacity *= 2
        self.cache.reserve_tails(self.capacity)
        self._place(self._positions, hidden)

    def _drop(self) -> None:
        if self._recording is not None:
            if self.device.type == "cuda":
                # nothing that is still running may lose its memory
                torch.cuda.synchronize(self.device)
            self._recording, self._scratch = None, []
            self.reason = "the cache is another one than was recorded with"

    def _run(self) -> Tensor:
        """The step itself: everything in it is the device's business."""
        settings = self.cache.settings
        settings.fixed_tail = self._tail
        try:
            with no_masks():
                self._tail.length.add_(1)
                logits = self._forward()
                self._positions.add_(1)
                return logits
        finally:
            settings.fixed_tail = None

    def _forward(self) -> Tensor:
        if isinstance(self._chosen, FusedStep):
            return self._chosen(self._tokens, self._positions, self.cache)
        logits: Tensor = self.model(
            self._tokens,
            attention_mask=None,
            position_ids=self._positions,
            **cache_argument(self.model, self.cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def _record(self) -> None:
        clock = time.perf_counter()
        self._wanted = True
        obstacle = capture.why_not(self.device) or rotary.why_not_fixed(self.model, self._positions)
        if obstacle is None:
            positions = self._positions.clone()

            def rewind() -> None:
                self._tail.length.fill_(self._length)
                self._positions.copy_(positions)
                for layer in self._layers:
                    layer.attended()

            used: list[Any] = []
            tail = self._tail
            try:
                # On this stream first: kernels are compiled and scratch memory is allocated here.
                # Twice, because scratch memory may grow from layer to layer.
                for _ in range(2):
                    self._run()
                    rewind()
                self._tail = replace(tail, used=used)
                with rotary.fixed_frequencies(self.model, self._positions) as frequencies:
                    self._recording = capture.record(self._run, rewind, self.device)
                # weights too: what puts them elsewhere must not free what is read here
                weights = [parameter.data for parameter in self.model.parameters()]
                scratch = self.cache.settings.workspace.tensors()
                self._scratch = [*used, *frequencies, *scratch, *weights]
                self._stretch = bisect_right(self._boundaries, self._position)
            except Exception as error:
                rewind()
                first = (str(error).strip().splitlines() or ["no message"])[0]
                obstacle = f"recording failed ({type(error).__name__}: {first})"
            finally:
                self._tail = tail
        self.reason = obstacle
        self.capture_seconds += time.perf_counter() - clock
        if obstacle is not None:
            self._wanted = False
            if self.graph == "on":
                raise UserError(f"the decode step cannot be recorded: {obstacle}; use graph='auto'")


@contextlib.contextmanager
def _computing() -> Iterator[None]:
    """The same for making, recording and replaying: no gradients, and ordinary tensors even where
    the caller is in inference mode, so that they may be written to outside of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def why_not_fixed_tails(model: Any, cache: RaggedCache) -> str | None:
    """Why tails of fixed size are impossible; None if they are possible."""
    plain = [i for i, layer in enumerate(cache.layers) if not isinstance(layer, RaggedLayer)]
    if plain:
        what = plain_layers.described(cache.layers, plain)
        return f"{what} are not compressed, transformers keeps them in its own way"
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    shared = is_tensor_parallel(model)
    for layer in cache.ragged_layers:
        store = layer.store
        if store is not None and store.periodic:
            if store.longest_tail < LEAST_PERIOD:
                return (
                    f"the method takes the tail over every {store.longest_tail} tokens, sooner "
                    "than a recording pays"
                )
        elif store is not None and (store.absorbs or not store.capturable):
            return "the method decides on the host what a step reads or keeps"
        assert layer.prefix is not None
        devices.add(layer.prefix.keys.device)
        shared = shared or is_sharded(layer.prefix.kv_heads, cache.settings.kv_heads)
    if shared:
        return "the model is shared with other processes"
    if len(devices) > 1:
        return "the model is spread over " + ", ".join(sorted(str(device) for device in devices))
    return None
