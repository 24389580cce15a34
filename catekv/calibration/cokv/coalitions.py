"""What a coalition of KV heads is worth on a model: only its heads look beyond the local window.

A prompt is read once. Every coalition is then a different set of row lengths over the same dense
keys and values: a head of the coalition has all of them, another one none but the last ``window``.
Nothing is copied: the rows of a batch of coalitions share the storage of the one dense cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from catekv.cache.cache import RaggedCache, uncompressed_layers
from catekv.cache.layer import RaggedLayer
from catekv.calibration.cokv.game import Members
from catekv.decode.context import Context, DensePrompt
from catekv.errors import UserError
from catekv.evaluation.run.asking import Trial, ask, official_scores, text_of
from catekv.kernels.ragged import Bucket, RaggedPrefix
from catekv.methods.base import Needs

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: Tokens at the end of the prompt that every head sees, as published.
WINDOW = 8


def players(model: CateKVModel) -> tuple[int, int]:
    """(layers, KV heads) of the game.

    Raises:
        UserError: a model with layers that no method compresses (windows, linear attention).
    """
    plain = uncompressed_layers(model.config)
    if plain:
        raise UserError(
            f"{plain} of this model are not compressed; "
            "every (layer, KV head) is a player, so use a model with full attention in all layers"
        )
    return model.shape.layers, model.shape.kv_heads


def masked_context(dense: DensePrompt, coalitions: Members, window: int = WINDOW) -> Context:
    """A batch of one prompt, one sequence a coalition, in which heads outside see the window only.

    Prefill was full and exact; only what is decoded from the context is masked.

    Args:
        dense: one prompt without padding (``CateKVModel.observe``); it is shared, not copied, and
            must not be fed.
        coalitions: bool [batch, layers, kv_heads].
        window: last prompt tokens that every head keeps.

    Raises:
        UserError: coalitions of another shape, a batch of prompts, or a window that is all of one.
    """
    layers = dense.cache.ragged_layers
    batch = len(coalitions)
    if dense.input_ids.shape[0] != 1 or dense.attention_mask is not None:
        raise UserError("coalitions are compared on one prompt at a time; observe() a single one")
    kv_heads = layers[0].buffer.views()[0].shape[1]
    if coalitions.shape[1:] != (len(layers), kv_heads):
        raise UserError(
            f"coalitions of {list(coalitions.shape[1:])} layers and heads do not fit the model's "
            f"{len(layers)} x {kv_heads}"
        )
    if window >= dense.tokens:
        raise UserError(
            f"a window of {window} is all of a prompt of {dense.tokens} tokens, so that no head is "
            "worth anything; give a smaller --window or longer prompts"
        )
    cache = RaggedCache(dense.config, None, dense.tokens)
    cache.weights = dense.cache.weights
    target: Any
    for target, source, chosen in zip(cache.layers, layers, coalitions.swapaxes(0, 1), strict=True):
        keys, values = _row_by_row(source)
        target.lazy_initialization(keys, values)
        target.seen, target.scaling = source.seen, source.scaling
        target.query_heads = source.query_heads
        target.padding = [0] * batch
        target.prefix = _shared_prefix(keys, values, chosen, dense.tokens - window)
        last = slice(dense.tokens - window, dense.tokens)
        target.buffer.append(
            keys[:, :, last].repeat(batch, 1, 1, 1), values[:, :, last].repeat(batch, 1, 1, 1)
        )
    return Context(
        cache,
        dense.input_ids.expand(batch, -1),
        None,
        dense.last_logits.expand(batch, -1),
        {},
        dense.model_id,
    )


def _row_by_row(layer: RaggedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [1, kv_heads, tokens, dim] of a dense layer, each head in one piece.

    Models hand them over token by token. The layer keeps the rearranged ones instead, so that they
    are rearranged once and there is one dense cache.
    """
    keys, values = layer.buffer.views()
    if not (keys.is_contiguous() and values.is_contiguous()):
        layer.buffer.keys, layer.buffer.values = keys.contiguous(), values.contiguous()
        keys, values = layer.buffer.views()
    return keys, values


def _shared_prefix(
    keys: torch.Tensor, values: torch.Tensor, chosen: Members, stored: int
) -> RaggedPrefix:
    """The first ``stored`` of [1, kv_heads, tokens, dim] for the heads that are chosen, bool
    [batch, kv_heads]; the others get nothing. The rows of one head share its entries."""
    batch, heads = chosen.shape
    tokens, device = keys.shape[2], keys.device
    offsets = np.broadcast_to(np.arange(heads) * tokens, chosen.shape) * chosen
    lengths = chosen * stored
    flat = np.arange(batch * heads).reshape(batch, heads)
    buckets = [
        Bucket(
            stored, torch.tensor(flat[chosen[:, head], head], device=device)[None], head * tokens
        )
        for head in range(heads)
        if chosen[:, head].any()
    ]
    if not chosen.all():
        buckets.append(Bucket(0, torch.tensor(flat[~chosen], device=device)[None], 0))
    return RaggedPrefix(
        keys.view(-1, keys.shape[-1]),
        values.view(-1, values.shape[-1]),
        None,
        torch.tensor(offsets, dtype=torch.int64, device=device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        tuple(buckets),
        tuple(zip(offsets.flatten().tolist(), lengths.flatten().tolist(), strict=True)),
    )


def answer_all(model: CateKVModel, context: Context, trial: Trial) -> list[str]:
    """The greedy answers to one sample's question from every sequence of a context."""
    generation = ask(model, context, [trial] * len(context.input_ids))
    return [text_of(model, generation, place) for place in range(len(generation.rows))]


class CoalitionScorer:
    """Task scores of coalitions on one sample after another.

    Args:
        model: its own method is not used.
        window: tokens that every head sees.
        batch_size: coalitions that are decoded together.
        keep_prompts: hold the dense cache of every sample, so that each is read once in a whole
            run; otherwise there is one dense cache at a time.
        chunk_size: tokens per chunk of a prefill.
    """

    def __init__(
        self,
        model: CateKVModel,
        window: int = WINDOW,
        batch_size: int = 32,
        *,
        keep_prompts: bool = False,
        chunk_size: int = 8192,
    ) -> None:
        if window < 1 or batch_size < 1:
            raise UserError(f"window {window} and batch size {batch_size} must be at least 1")
        self.model = model
        self.window = window
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.layers, self.kv_heads = players(model)
        self._kept: dict[int, DensePrompt] | None = {} if keep_prompts else None

    def read(self, trial: Trial) -> DensePrompt:
        """The dense cache of a sample's prompt."""
        if self._kept is None:
            return self._observe(trial)
        if id(trial) not in self._kept:
            self._kept[id(trial)] = self._observe(trial)
        return self._kept[id(trial)]

    def _observe(self, trial: Trial) -> DensePrompt:
        return self.model.observe(trial.context_ids, needs=Needs(), chunk_size=self.chunk_size)

    def answers(self, trial: Trial, coalitions: Sequence[Members]) -> list[str]:
        """The greedy answer of every coalition, bool [players] each."""
        if not coalitions:
            return []
        dense = self.read(trial)
        table = np.stack(coalitions).reshape(-1, self.layers, self.kv_heads)
        texts: list[str] = []
        for start in range(0, len(table), self.batch_size):
            part = table[start : start + self.batch_size]
            texts += answer_all(self.model, masked_context(dense, part, self.window), trial)
        return texts

    def scores(self, trial: Trial, coalitions: Sequence[Members]) -> list[float]:
        """The task's official score of every coalition on one sample, each in [0, 1]."""
        return official_scores(self.answers(trial, coalitions), trial.sample)
