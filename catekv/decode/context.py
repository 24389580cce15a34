"""Prompts that were read: compressed (:class:`Context`) or whole (:class:`DensePrompt`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catekv.cache import plain_layers
from catekv.cache.cache import RaggedCache
from catekv.cache.files import DESCRIPTION_FILE
from catekv.cache.layer import RaggedLayer
from catekv.cache.sharded import select_here
from catekv.decode.generation import Session
from catekv.errors import UserError
from catekv.files import read_object, read_tensors
from catekv.kernels.ragged import concatenate
from catekv.methods.base import Method, Needs, Observed

CONTEXT_FILE = "context.safetensors"


class SessionSlot:
    """Keeps the recorded decode step of one finished answer for the next question to a context.

    Any number of threads may ask at the same time: one of them gets it, the others make their own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: Session | None = None

    def take(self, model: Any, cache: RaggedCache) -> Session:
        """The session that is kept, if it is of this model and ``cache`` is still what it was made
        of, or a new one."""
        with self._lock:
            session, self._idle = self._idle, None
        if session is None or session.step is None or session.step.model is not model:
            return Session(cache)
        return session if _continues(session, cache) else Session(cache)

    def put(self, session: Session, cache: RaggedCache) -> None:
        """Keep a session that has a recorded step; others are as quickly made anew."""
        recorded = session.step is not None and session.step.captured
        if recorded and not _absorbing(session.cache):
            session.rewind()
            if _continues(session, cache):
                with self._lock:
                    self._idle = session

    def clear(self) -> None:
        with self._lock:
            self._idle = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionSlot:
        return SessionSlot()

    def __reduce__(self) -> tuple[Any, ...]:
        return SessionSlot, ()


def _continues(session: Session, cache: RaggedCache) -> bool:
    """Whether a rewound session is in the state of a fork of ``cache``."""
    return (
        session.cache.get_seq_length() == cache.get_seq_length()
        and not _absorbing(session.cache)
        and not any(layer.tail_length for layer in cache.ragged_layers)
        and all(
            own.prefix is other.prefix
            for own, other in zip(session.cache.ragged_layers, cache.ragged_layers, strict=True)
        )
    )


def _absorbing(cache: RaggedCache) -> bool:
    """Whether its stores take tokens over, so that nobody gets back to before them."""
    stores = (layer.store for layer in cache.ragged_layers)
    return any(store is not None and store.absorbs for store in stores)


@dataclass
class Context:
    """A compressed prompt. Questions fork it, so it can be asked any number of times.

    On a GPU the tails and the recorded decode step of the last answer are kept for the next
    question; :meth:`release` gives their memory back.

    Attributes:
        cache: the compressed cache after the whole context.
        input_ids: int64 [batch, columns]; attention_mask: [batch, columns] or None (no padding).
        last_logits: [batch, vocabulary] of the last context token.
        timings: ``prefill_seconds`` (without compression) and ``compress_seconds``.
    """

    cache: RaggedCache
    input_ids: Tensor
    attention_mask: Tensor | None
    last_logits: Tensor
    timings: dict[str, float] = field(default_factory=dict)
    model_id: str = ""
    sessions: SessionSlot = field(default_factory=SessionSlot, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """True number of context columns (padding included)."""
        return self.cache.get_seq_length()

    def lengths(self) -> list[Tensor]:
        """Stored tokens of every layer, int64 [batch, kv_heads]."""
        return self.cache.lengths()

    def stored_bytes(self) -> int:
        """Bytes the cache really allocates."""
        return self.cache.stored_bytes()

    def full_bytes(self) -> int:
        """Bytes an uncompressed cache of the same model and length needs."""
        return self.cache.full_bytes()

    def kept_share(self) -> float:
        """Stored tokens over all tokens."""
        return self.cache.kept_share()

    def fork(self) -> Context:
        """An independent copy that shares the compressed storage."""
        return Context(
            self.cache.fork(),
            self.input_ids,
            self.attention_mask,
            self.last_logits,
            dict(self.timings),
            self.model_id,
        )

    def rows(self, indices: Sequence[int]) -> Context:
        """An independent context of some sequences of the batch, which shares the storage."""
        part = self.fork()
        where = torch.tensor(list(indices), dtype=torch.int64)
        part.cache.batch_select_indices(where)
        where = where.to(self.input_ids.device)
        part.input_ids, part.last_logits = self.input_ids[where], self.last_logits[where]
        if self.attention_mask is not None:
            part.attention_mask = self.attention_mask[where]
        return part

    def compress(self) -> None:
        """Let the method choose anew among all that is held, what came after the prompt included.

        Raises:
            UserError: the method chooses among a prompt only.
        """
        mask, tail = self.attention_mask, self.cache.tail_length
        visible = None if mask is None else mask[:, self.tokens - tail :].bool()
        self.cache.fold(visible)

    def release(self) -> None:
        """Free what is kept for the next question. The context can still be asked."""
        self.sessions.clear()

    def save(self, path: str | Path) -> None:
        """Write the context to a folder that ``CateKVModel.load_context`` reads."""
        tensors = {"input_ids": self.input_ids, "last_logits": self.last_logits}
        if self.attention_mask is not None:
            tensors["attention_mask"] = self.attention_mask
        self.cache.save(
            path,
            # of one write: the ids and logits of another context must not meet this cache
            beside={CONTEXT_FILE: {name: part.contiguous() for name, part in tensors.items()}},
            model_id=self.model_id,
            timings=self.timings,
        )

    @classmethod
    def load(cls, path: str | Path, model: Any) -> Context:
        """Read what :meth:`save` wrote, for the model it was made with (a ``CateKVModel``)."""
        folder = Path(path)
        cache = RaggedCache.load(folder, model)
        try:
            tensors = read_tensors(folder / CONTEXT_FILE, str(model.device))
            description = read_object(folder / DESCRIPTION_FILE)
            if CONTEXT_FILE not in description.get("beside", [CONTEXT_FILE]):
                raise UserError(f"its {CONTEXT_FILE} is of an earlier one; save the context again")
        except UserError as error:
            raise UserError(f"{folder} holds no saved context: {error}") from error
        return cls(
            cache,
            tensors["input_ids"],
            tensors.get("attention_mask"),
            tensors["last_logits"],
            description.get("timings", {}),
            description.get("model_id", ""),
        )


def stack(contexts: Sequence[Context]) -> Context:
    """One batch of contexts of the same prompt that different methods compressed.

    A decode step over the batch costs little more than one over a single context, so a comparison
    of many methods on one prompt decodes them together. Timings are not kept: they belong to one
    method each.

    Raises:
        UserError: the contexts are not fresh compressions of one prompt.
    """
    first = contexts[0]
    for context in contexts:
        if not context.cache.compressed or not torch.equal(context.input_ids, first.input_ids):
            raise UserError("only compressed contexts of one and the same prompt can be stacked")
        if (context.cache.config_hash, context.cache.weights) != (
            first.cache.config_hash,
            first.cache.weights,
        ):
            raise UserError(
                "only contexts of the same weights and adapters can be stacked; prefill them all "
                "with one model"
            )
        if any(layer.tail_length for layer in context.cache.ragged_layers):
            raise UserError("contexts that have gone on past their prompt cannot be stacked")
        if any(layer.store is not None for layer in context.cache.ragged_layers):
            raise UserError("contexts whose method goes on while decoding cannot be stacked")
    cache = first.cache.fork()
    layer: Any
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, RaggedLayer):
            # the same prompt leaves the same state in layers that no method compresses
            plain_layers.select_rows(layer, torch.zeros(len(contexts), dtype=torch.int64))
            continue
        layers: list[Any] = [context.cache.layers[index] for context in contexts]
        layer.prefix = concatenate([source.prefix for source in layers])
        layer.padding = [count for source in layers for count in source.padding_per_sequence()]
    masks = [context.attention_mask for context in contexts if context.attention_mask is not None]
    return Context(
        cache,
        torch.cat([context.input_ids for context in contexts]),
        torch.cat(masks) if masks else None,
        torch.cat([context.last_logits for context in contexts]),
        {},
        first.model_id,
    )


@dataclass
class DensePrompt:
    """An uncompressed prompt with what methods need to know of it: one prefill for many methods.

    ``cache`` stays as it is; :meth:`compress` may be called with any number of methods.
    """

    cache: RaggedCache
    input_ids: Tensor
    attention_mask: Tensor | None
    last_logits: Tensor
    needs: Needs
    config: Any
    timings: dict[str, float] = field(default_factory=dict)
    model_id: str = ""

    @property
    def tokens(self) -> int:
        return self.cache.get_seq_length()

    def observed(self, layer: int) -> Observed:
        """What a method sees of one layer (padded columns included, if there are any).

        Raises:
            UserError: if this layer is not one that can be compressed.
        """
        found = self.cache.layers[layer]
        if not isinstance(found, RaggedLayer):
            what = plain_layers.described(self.cache.layers, [layer])
            raise UserError(f"{what} is not compressed")
        return found.observed()[0]

    def compress(self, method: Method) -> Context:
        """The context as ``method`` would have left it, had it been prefilled with it.

        Raises:
            UserError: if the method needs more than was recorded.
        """
        missing = method.needs.missing_from(self.needs)
        if missing:
            raise UserError(
                f"the prompt was observed without {', '.join(missing)}, which method "
                f"{method.name!r} needs; call observe(needs=method.needs)"
            )
        clock = time.perf_counter()
        cache = RaggedCache(self.config, method, self.tokens)
        cache.weights = self.cache.weights
        seen: list[tuple[Any, Observed, Tensor | None]] = []
        for index, source in enumerate(self.cache.layers):
            if not isinstance(source, RaggedLayer):
                cache.layers[index] = plain_layers.copied(source)
                continue
            observed, valid = source.observed(method.needs)
            target: Any = cache.layers[index]
            target.lazy_initialization(observed.keys, observed.values)
            target.seen, target.scaling = source.seen, source.scaling
            target.form = source.form
            target.query_heads = source.query_heads
            seen.append((target, observed, valid))
            if not method.needs.all_layers:
                part, (selection,) = select_here(method, [observed], valid, cache.settings.kv_heads)
                target.adopt(part, observed, valid, selection)
        if method.needs.all_layers and seen:
            observations = [observed for _, observed, _ in seen]
            part, selections = select_here(
                method, observations, seen[0][2], cache.settings.kv_heads
            )
            for (target, observed, valid), selection in zip(seen, selections, strict=True):
                target.adopt(part, observed, valid, selection)
        timings = {**self.timings, "compress_seconds": time.perf_counter() - clock}
        return Context(
            cache,
            self.input_ids,
            self.attention_mask,
            self.last_logits,
            timings,
            self.model_id,
        )
