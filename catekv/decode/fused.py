"""A decode step of a whole decoder in few launches, in place of the model's own forward.

The forward of transformers runs some forty kernels a layer at one token, most of them for a few
thousand numbers. Here a layer of Llama is ten: norm with the residual addition before it, the
product of queries, keys and values, rotation with the append to the tail, attention in two, its
output, norm with addition, the product of gate and up, their gate, and down. The addition after the
MLP is part of the next layer's first norm.

Attention goes through the function that the model runs with, so every method and store works as in
an ordinary step. The step is tried against the model's modules before it is used
(:mod:`catekv.decode.fused_proof`).
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from catekv import kernels
from catekv.cache.attention import NAMES, attention_of
from catekv.decode import fused_proof
from catekv.decode.decoder_parts import Decoder, NotFusedError, has_hooks, read_decoder
from catekv.errors import UserError
from catekv.models.compat import input_device, text_config

#: Values of the ``fused_step`` option.
FUSED_MODES = ("auto", "on", "off")

#: The step of each model, or why it has none, and the state of the model that told it.
_known: WeakKeyDictionary[torch.nn.Module, tuple[Any, FusedStep | str]] = WeakKeyDictionary()
_lock = threading.RLock()


class FusedStep:
    """One token for every sequence of a batch, behind a cache that stores it at a fixed place."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits [batch, vocabulary].

        Args:
            tokens: int64 [batch, 1]. positions: int64 [batch, 1].
            cache: its layers have ``append_by`` as :class:`catekv.cache.layer.RaggedLayer` has it.
        """
        decoder = self.decoder
        states = decoder.embeddings(tokens)
        tables = decoder.rotary(states, position_ids=positions)
        residual = None
        for index, held in enumerate(cache.layers):
            residual, states = self.layer(index, states, residual, tables, held)
        _, states = _normed(decoder.norm, states, residual)
        logits: Tensor = decoder.head(states)
        return logits[:, -1]

    def layer(
        self,
        index: int,
        states: Tensor,
        residual: Tensor | None,
        tables: tuple[Tensor, Tensor],
        held: Any,
    ) -> tuple[Tensor, Tensor]:
        """One decoder layer.

        Args:
            states: [batch, 1, width]; with ``residual`` added they are what the layer reads.
            tables: cosine and sine [batch or 1, 1, rotary_dim] of the positions.
            held: the layer of the cache.

        Returns:
            The next residual, and the states that are still to be added to it.
        """
        parts = self.decoder.layers[index]
        residual, normed = _normed(parts.before_attention, states, residual)
        projected = parts.projection(normed)

        def write(keys: Tensor, values: Tensor, length: Tensor) -> Tensor:
            return kernels.rotary_append(
                projected,
                *tables,
                keys,
                values,
                length,
                parts.query_heads,
                interleaved=parts.interleaved,
                norms=parts.norms(),
            )

        queries, keys, values = held.append_by(write)
        attend = attention_of(parts.attention)
        attended = attend(
            parts.attention, queries, keys, values, None, dropout=0.0,
            scaling=parts.attention.scaling,
        )[0]  # fmt: skip
        states = parts.output(attended.flatten(2))
        if parts.after_attention is not None:
            states = _normed(parts.after_attention, states, None)[1]
        residual, normed = _normed(parts.before_mlp, states, residual)
        states = parts.down(kernels.silu_multiply(parts.gate_up(normed)))
        if parts.after_mlp is not None:
            states = _normed(parts.after_mlp, states, None)[1]
        return residual, states


def _normed(norm: Any, states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    return kernels.rms_norm(states, norm.module.weight, norm.epsilon, residual)


def fused_step(model: Any) -> FusedStep | str:
    """The fused step of a model, proven against its modules, or why it has none.

    Found out once, and again when weights were moved or replaced, hooks attached or the training
    mode switched since. Weights that read the same states are put side by side.
    """
    with _lock:
        state = _state(model)
        known = _known.get(model)
        if known is None or known[0] != state:
            attention = text_config(model.config)._attn_implementation
            if attention not in NAMES.values():
                # not remembered: it may be replaced for a while, as measurements do
                return f"it runs with attention {attention!r} and not with catekv's"
            found = _found(model)
            # the weights are elsewhere now
            known = _known[model] = _state(model), found
        return known[1]


def chosen_step(model: Any, mode: str) -> FusedStep | str:
    """The step that the option ``fused_step`` asks for, or why there is none.

    Args:
        mode: ``auto`` (on a CUDA device, where the model has one), ``on`` or ``off``.

    Raises:
        UserError: an unknown mode, or ``on`` for a model that has none.
    """
    if mode not in FUSED_MODES:
        raise UserError(f"unknown fused_step {mode!r}; use {', '.join(FUSED_MODES)}")
    if mode == "off":
        return "fused_step='off' was asked for"
    device = input_device(model)
    if mode == "auto" and device.type != "cuda":
        return f"the model is on {device}; fused_step='on' runs it there"
    found = fused_step(model)
    if mode == "on" and isinstance(found, str):
        raise UserError(f"the decode step cannot be fused: {found}; use fused_step='auto'")
    return found


def _state(model: Any) -> Any:
    """What the verdict on a model hangs on, as far as it can change."""
    places = [parameter.data_ptr() for parameter in model.parameters()]
    return model.training, places, [id(m) for m in model.modules() if has_hooks(m)]


@torch.no_grad()
def _found(model: Any) -> FusedStep | str:
    try:
        decoder = read_decoder(model)
        fused_proof.prove_norms(decoder)
        decoder.join()
        if input_device(model).type == "cuda":
            torch.cuda.empty_cache()  # where the weights were
        step = FusedStep(decoder)
        fault = fused_proof.fault_of_keys(model, step)
        if fault is not None:
            step = FusedStep(decoder.interleaved())
            if fused_proof.fault_of_keys(model, step) is not None:
                raise NotFusedError(fault)
        fused_proof.prove(model, step)
    except NotFusedError as error:
        return str(error)
    except Exception as error:
        # modules of another making fail in their own ways
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return f"trying it failed ({type(error).__name__}: {first})"
    return step
