"""Sizes of a model that decide what its weights, caches and prefill take, from its configuration
alone or from a loaded model.

A decode step of a memory-bound model reads its weights (without the embedding table) and its cache
once; the ratio of those bytes bounds the speed-up that compression can give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.cache.cache import RaggedCache
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.kernels.codes import row_bytes
from catekv.methods.base import Method
from catekv.methods.stores import QUANTISED
from catekv.models.compat import attention_sizes, text_config
from catekv.models.kinds import without_weights
from catekv.models.shape import ModelShape

GIB = 2**30


GB = 1e9


@dataclass(frozen=True)
class MemoryModel:
    """A model's sizes; weights and cache both use ``element_bytes`` per number.

    ``parameters`` counts all weights, ``embedding_parameters`` the table that a step does not
    stream.
    """

    layers: int
    kv_heads: int
    head_dim: int
    parameters: int
    embedding_parameters: int = 0
    element_bytes: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes

    def cache_bytes(self, tokens: float) -> float:
        """Cache of ``tokens`` tokens per head (the mean, if heads differ)."""
        return tokens * self.kv_bytes_per_token

    def resident_bytes(self, tokens: float, batch: int = 1) -> float:
        """Weights and cache."""
        return self.parameters * self.element_bytes + batch * self.cache_bytes(tokens)

    def step_bytes(self, tokens: float, batch: int = 1) -> float:
        """Bytes a decode step reads."""
        streamed = (self.parameters - self.embedding_parameters) * self.element_bytes
        return streamed + batch * self.cache_bytes(tokens)

    def decode_bound(self, tokens: int, kept: float, batch: int = 1) -> float:
        """Largest possible speed-up of a decode step, full cache over ``kept`` tokens per head."""
        return self.step_bytes(tokens, batch) / self.step_bytes(kept, batch)


#: Tensors of [tokens, intermediate] alive at once in a feed-forward part: activation, up and
#: product; with one projection for gate and up its double-width result, activation and product;
#: without a gate input and result of the activation.
GATED, FUSED_GATE, UNGATED = 3, 4, 2


@dataclass(frozen=True)
class ModelSizes(MemoryModel):
    """A :class:`MemoryModel` with what a prefill works with besides.

    Attributes:
        query_heads, hidden_size, intermediate_size: of the decoder.
        feed_forward: tensors of [tokens, intermediate] alive at once in a feed-forward part.
        fused_attention: whether one projection makes queries, keys and values.
        windows: per layer, how many tokens its cache can hold at most: None where it attends to
            everything (these layers are compressed), 0 where it has no keys and values.
        bytes_of_weights: of a loaded model, whose parts may differ in type; None: all of
            ``element_bytes``.
    """

    query_heads: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    feed_forward: int = GATED
    fused_attention: bool = False
    windows: tuple[int | None, ...] = ()
    bytes_of_weights: int | None = None

    @property
    def shape(self) -> ModelShape:
        return ModelShape(self.layers, self.query_heads, self.kv_heads, self.head_dim)

    @property
    def weight_bytes(self) -> int:
        if self.bytes_of_weights is not None:
            return self.bytes_of_weights
        return self.parameters * self.element_bytes

    @property
    def row_token_bytes(self) -> int:
        """Key and value of one token of one KV head in one layer."""
        return 2 * self.head_dim * self.element_bytes

    def layer_tokens(self, layer: int, tokens: int) -> int:
        """Tokens per KV head that a layer's uncompressed cache holds of a prompt."""
        window = self.windows[layer]
        return tokens if window is None else min(tokens, window)

    def full_layer_bytes(self, tokens: int) -> list[float]:
        """Bytes of every layer's uncompressed keys and values of one sequence."""
        row = self.kv_heads * self.row_token_bytes
        return [float(self.layer_tokens(layer, tokens) * row) for layer in range(self.layers)]

    def kept_layer_bytes(
        self, method: Method | None, tokens: int, *, packed: bool = False
    ) -> list[float]:
        """Bytes of every layer's keys and values of one sequence after compression, in the form in
        which the method stores them, scales and residual included.

        A method that decides its budgets for every prompt counts as one that keeps everything, so
        that nothing is promised. None keeps everything.

        Args:
            packed: what is kept before it takes another form.
        """
        full = self.full_layer_bytes(tokens)
        if method is None:
            return full
        table = kept_table(method, tokens, self.shape)
        quantised = method.store in QUANTISED and not packed
        if table is None:
            if not quantised:
                return full
            table = torch.full((self.layers, self.kv_heads), tokens)
        if quantised:
            kept = [sum(self._quantised_bytes(method.store, row) for row in rows.tolist())
                    for rows in table]  # fmt: skip
        else:
            kept = (table.double().sum(dim=-1) * self.row_token_bytes).tolist()
        return [
            float(kept[layer]) if self.windows[layer] is None else full[layer]
            for layer in range(self.layers)
        ]

    def _quantised_bytes(self, form: str, entries: float) -> float:
        return row_bytes(form, entries, (self.head_dim, self.head_dim), self.element_bytes)


def kept_table(method: Method, tokens: int, shape: ModelShape) -> Tensor | None:
    """Entries kept of a prompt, [layers, kv_heads]; None where only the prompt's content decides.

    Of methods that move tokens between heads, what they are given to move.

    Raises:
        UserError: the method does not fit a model of this shape.
    """
    method.validate(shape)
    try:
        return method.for_prompt(tokens, shape).given_table(tokens, shape)
    except UserError:
        return None


def sizes_of_config(config: Any, element_bytes: int = 2) -> ModelSizes:
    """Sizes of a model from its configuration; its weights are counted without allocating them.

    Args:
        config: a transformers configuration of a decoder.
        element_bytes: bytes of a number in weights and cache.
    """
    return _sizes(without_weights(config), element_bytes, None)


def sizes_of_model(model: torch.nn.Module) -> ModelSizes:
    """Sizes of a loaded model, as its attention layers and weights really are."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    return _sizes(model, embedding.weight.element_size(), weights)


def _sizes(model: Any, element_bytes: int, weights: int | None) -> ModelSizes:
    config = text_config(model.config)
    attention = attention_sizes(model.config)
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is table
    return ModelSizes(
        layers=config.num_hidden_layers,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        # a tied table is the output head too, and that is read whole at every step
        embedding_parameters=0 if tied else table.numel(),
        element_bytes=element_bytes,
        query_heads=attention.query_heads,
        hidden_size=config.hidden_size,
        intermediate_size=_intermediate(config),
        feed_forward=_feed_forward(_names(model)),
        fused_attention=bool(_names(model) & {"qkv_proj", "query_key_value", "Wqkv", "c_attn"}),
        windows=_windows(model.config),
        bytes_of_weights=weights,
    )


def _intermediate(config: Any) -> int:
    """Width of the feed-forward part; of experts, of all that one token passes through."""
    for name in ("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner"):
        width = getattr(config, name, None)
        if isinstance(width, int) and width:
            return width * (getattr(config, "num_experts_per_tok", None) or 1)
    return 4 * int(config.hidden_size)


def _names(model: torch.nn.Module) -> set[str]:
    """Last parts of the names of all modules and parameters."""
    named = [*model.named_modules(), *model.named_parameters()]
    return {name.rpartition(".")[2] for name, _ in named}


def _feed_forward(names: set[str]) -> int:
    if "gate_up_proj" in names:
        return FUSED_GATE
    return GATED if names & {"gate_proj", "w3"} else UNGATED


def _windows(config: Any) -> tuple[int | None, ...]:
    """What every layer's cache holds at most, as the cache that prefill uses is made."""
    found: list[int | None] = []
    for layer in RaggedCache(config, None).layers:
        if isinstance(layer, RaggedLayer):
            found.append(None)
        else:
            # layers without keys and values (linear attention) have neither attribute
            found.append(int(getattr(layer, "sliding_window", None) or 0))
    # releases before 5.23 list no layers that share the keys of an earlier one
    found += [0] * (text_config(config).num_hidden_layers - len(found))
    return tuple(found)
