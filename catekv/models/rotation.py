"""Rotary angles of a model as plain tensors, so that post-rotary keys can be turned back.

Keys are cached rotated. Their low-rank structure lies in the keys before the rotation (ShadowKV),
and a cache that numbers its tokens anew (StreamingLLM) must rotate stored keys once more.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.models.compat import attention_sizes


@dataclass(frozen=True, eq=False)
class Rotation:
    """How a model rotates its keys: dimension ``i`` of the first half of the rotated part turns
    with dimension ``i`` of the second half (the style of Llama, Qwen, Mistral and Phi-3).

    Attributes:
        inverse_frequencies: float32 [rotated / 2], radians per position. Dimensions of a head
            beyond the first ``rotated`` ones stay as they are.
        scaling: factor on the rotated part (some context extensions lengthen queries and keys).
    """

    inverse_frequencies: Tensor
    scaling: float = 1.0

    def to(self, device: torch.device | str) -> Rotation:
        """The same angles on another device."""
        return Rotation(self.inverse_frequencies.to(device), self.scaling)

    def rotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Post-rotary keys of pre-rotary ones.

        Args:
            keys: [..., tokens, head_dim].
            positions: integers, broadcast to [..., tokens].

        Returns:
            A new tensor in the dtype of the keys; computed in float32 at least.
        """
        return self._turn(keys, positions, 1.0, self.scaling)

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Pre-rotary keys of post-rotary ones; arguments as in :meth:`rotate`."""
        return self._turn(keys, positions, -1.0, 1.0 / self.scaling)

    def mean_matrix(self, positions: Tensor, dim: int) -> Tensor:
        """The mean of the rotations at some positions as a matrix, float32 [dim, dim]; it is no
        rotation itself.

        Args:
            positions: integers [count]. dim: of a head.
        """
        angles = positions[:, None].float() * self.inverse_frequencies
        cosine, sine = angles.cos().mean(dim=0), angles.sin().mean(dim=0)
        matrix = torch.eye(dim, device=positions.device)
        first = torch.arange(len(cosine), device=positions.device)
        second = first + len(cosine)
        matrix[first, first] = matrix[second, second] = self.scaling * cosine
        matrix[first, second], matrix[second, first] = -self.scaling * sine, self.scaling * sine
        return matrix

    def _turn(self, keys: Tensor, positions: Tensor, direction: float, scaling: float) -> Tensor:
        half = self.inverse_frequencies.shape[0]
        # angles in float32 whatever the keys: that is what models do
        angles = positions[..., None].float() * self.inverse_frequencies
        dtype = torch.promote_types(keys.dtype, torch.float32)
        cosine, sine = (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)
        sine = sine * direction
        first, second = keys[..., :half].to(dtype), keys[..., half : 2 * half].to(dtype)
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        if keys.shape[-1] > 2 * half:
            turned.append(keys[..., 2 * half :].to(dtype))
        return torch.cat(turned, dim=-1).to(keys.dtype)


def rotation_of(config: Any, tokens: int, layer: int = 0) -> Rotation:
    """The rotation of a transformers model, on the CPU.

    The model's own rotary module says the frequencies, and its own rotation is compared with ours.

    Args:
        config: a transformers configuration, or a model.
        tokens: length of the longest prompt of the batch without padding: some context extensions
            choose their frequencies by it.
        layer: index of the decoder layer, for models whose layers rotate differently.

    Raises:
        UserError: a model without rotary embeddings, or one that pairs its dimensions otherwise
            (interleaved, as in GLM-4).
    """
    config = getattr(config, "config", config).get_text_config(decoder=True)
    module = _modelling_module(config)
    try:
        rotation = _read(_rotary_class(module)(config), config, tokens, layer)
        agrees = _agrees(module, config, rotation, layer)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the rotary embeddings of {config.model_type!r} cannot be read "
            f"({type(error).__name__}: {error}); use a method that does not rotate stored keys"
        ) from error
    if not agrees:
        raise UserError(
            f"{config.model_type!r} does not rotate the two halves of a head against each other "
            "(interleaved or another style); use a method that does not rotate stored keys"
        )
    return rotation


def _modelling_module(config: Any) -> Any:
    """The module that holds the model's code."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError as error:
        raise UserError(
            f"transformers knows no decoder of type {config.model_type!r}; its rotary embeddings "
            "cannot be read"
        ) from error
    return sys.modules[model_class.__module__]


def _rotary_class(module: Any) -> Any:
    found = [
        value
        for name, value in vars(module).items()
        if name.endswith("RotaryEmbedding") and inspect.isclass(value)
    ]
    if len(found) != 1:
        raise AttributeError(f"{len(found)} rotary classes in {module.__name__}")
    return found[0]


def _read(rotary: Any, config: Any, tokens: int, layer: int) -> Rotation:
    """Frequencies and scaling that hold for a prompt of ``tokens`` tokens."""
    positions = torch.tensor([[max(0, tokens - 1)]])
    arguments, prefix = {}, ""
    if "layer_type" in inspect.signature(type(rotary).forward).parameters:
        arguments["layer_type"] = config.layer_types[layer]
        prefix = f"{arguments['layer_type']}_"
    # a forward at the last position makes the module choose its frequencies
    rotary(torch.empty(1), positions, **arguments)
    frequencies = getattr(rotary, f"{prefix}inv_freq").detach().float().clone()
    return Rotation(frequencies, float(getattr(rotary, f"{prefix}attention_scaling")))


def _agrees(module: Any, config: Any, rotation: Rotation, layer: int) -> bool:
    """Whether the model's own code turns a random key as ``rotation`` does."""
    head_dim = attention_sizes(config, layer).head_dim
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 1, 3, head_dim, generator=generator)
    positions = torch.tensor([[1, 5, 11]])
    angles = positions[..., None].float() * rotation.inverse_frequencies
    angles = torch.cat([angles, angles], dim=-1)
    cosine, sine = angles.cos() * rotation.scaling, angles.sin() * rotation.scaling
    _, expected = module.apply_rotary_pos_emb(keys, keys, cosine, sine)
    return torch.allclose(rotation.rotate(keys, positions), expected, rtol=1e-4, atol=1e-5)
