"""The parts of a decoder that the fused step computes by itself, read off the model's modules.

What is not made of the parts that Llama is made of is refused with the reason. Whether the parts
compute what they do in Llama is not decided here: :mod:`catekv.decode.fused_proof` tries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catekv.decode.side_by_side import SideBySide
from catekv.errors import UserError
from catekv.kernels import HeadNorms
from catekv.models.compat import decoder_layers
from catekv.models.sharding import is_tensor_parallel

#: Children of the modules of a layer that the step knows; others may have no weights.
_LAYER = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm",
          "post_self_attn_layernorm", "post_mlp_layernorm")  # fmt: skip
_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm")
_MLP = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")


class NotFusedError(Exception):
    """Why a model has no fused step, in half a sentence."""


@dataclass(frozen=True, eq=False)
class Norm:
    """An RMSNorm: its module, whose weight is read anew every time."""

    module: Any
    epsilon: float


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer.

    Attributes:
        module: the layer itself. attention: its attention module.
        before_attention, before_mlp: norms of what the two parts read.
        after_attention, after_mlp: norms of what they give (GLM-4); None: there are none.
        projection: queries, keys and values side by side. output: of the attention.
        gate_up, down: of the MLP.
        head_norms: modules over query and key heads (Qwen3); None: there are none.
        query_heads, head_dim. interleaved: how pairs lie that are rotated.
    """

    module: Any
    attention: Any
    before_attention: Norm
    before_mlp: Norm
    after_attention: Norm | None
    after_mlp: Norm | None
    projection: SideBySide
    output: nn.Linear
    gate_up: SideBySide
    down: nn.Linear
    head_norms: tuple[Norm, Norm] | None
    query_heads: int
    kv_heads: int
    head_dim: int
    interleaved: bool = False

    def norms(self) -> HeadNorms | None:
        """As the kernel takes them."""
        if self.head_norms is None:
            return None
        query, key = self.head_norms
        return HeadNorms(query.module.weight, key.module.weight, query.epsilon)

    def all_norms(self) -> list[Norm]:
        single = (self.before_attention, self.before_mlp, self.after_attention, self.after_mlp)
        return [norm for norm in (*single, *(self.head_norms or ())) if norm is not None]


@dataclass(frozen=True, eq=False)
class Decoder:
    """A whole model: embeddings, rotary tables, layers, last norm and head."""

    embeddings: Any
    rotary: Any
    layers: tuple[Layer, ...]
    norm: Norm
    head: Any

    def interleaved(self) -> Decoder:
        """The same with neighbours rotated as pairs."""
        layers = tuple(replace(layer, interleaved=True) for layer in self.layers)
        return replace(self, layers=layers)

    def join(self) -> None:
        """Put weights side by side that read the same states.

        The largest ones first: in the place that the weights of one layer leave, those of the next
        may fit, so that an allocator is not left with holes that nothing fits into.
        """
        for layer in self.layers:
            layer.gate_up.join()
        for layer in self.layers:
            layer.projection.join()


def read_decoder(model: Any) -> Decoder:
    """The parts of a transformers model, in which nothing is changed.

    Raises:
        NotFusedError: with the reason.
    """
    base = getattr(model, "model", None)
    _refuse_state(model, base)
    try:
        layers = decoder_layers(model)
    except UserError as error:
        raise NotFusedError(str(error)) from error
    missing = [
        name for name in ("embed_tokens", "rotary_emb", "norm", "layers") if not hasattr(base, name)
    ]
    if missing or len(layers) != len(base.layers):  # type: ignore[union-attr]
        raise NotFusedError(f"{type(base).__name__} has no {' or '.join(missing) or 'layers'}")
    assert base is not None
    parts = tuple(_layer(layer) for layer in layers)
    held = [id(part) for layer in parts for part in (*layer.projection.layers, layer.down)]
    if len(set(held)) < len(held):
        raise NotFusedError("layers share their weights")
    head = getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear):
        raise NotFusedError(f"{type(model).__name__} has no linear lm_head")
    return Decoder(base.embed_tokens, base.rotary_emb, parts, _norm(base, "norm"), head)


def _refuse_state(model: Any, base: Any) -> None:
    """Refuse what a forward does besides computing, and weights that are not simply there."""
    if hasattr(model, "_orig_mod"):
        raise NotFusedError("the model is compiled")
    if isinstance(getattr(model, "peft_config", None), dict):
        raise NotFusedError("it has adapters")
    if is_tensor_parallel(model):
        raise NotFusedError("the model is shared with other processes")
    if model.training:
        raise NotFusedError("the model is in training mode")
    if not isinstance(base, nn.Module):
        raise NotFusedError(f"the layers of {type(model).__name__} are not in its part `model`")
    places = {parameter.device for parameter in model.parameters()}
    if len(places) != 1 or next(iter(places)).type == "meta":
        raise NotFusedError("its weights are not all on one device")
    if len({parameter.dtype for parameter in model.parameters()}) > 1:
        raise NotFusedError("its weights are of several types")
    watched = next((module for module in model.modules() if has_hooks(module)), None)
    if watched is not None:
        raise NotFusedError(f"hooks are attached to {type(watched).__name__}")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or hasattr(module, "_hf_hook")


def _layer(module: Any) -> Layer:
    """The parts of one layer; refuses one with parts that the step does not know."""
    attention, mlp = (_child(module, name) for name in ("self_attn", "mlp"))
    for owner, known in ((module, _LAYER), (attention, _ATTENTION), (mlp, _MLP)):
        _refuse_others(owner, known)
    _refuse_other_gates(mlp)
    projections, gates = _projections(attention), _gates(mlp)
    output, down = _linear(attention, "o_proj"), _linear(mlp, "down_proj")
    head_dim = getattr(attention, "head_dim", 0)
    if not head_dim or not hasattr(attention, "scaling"):
        raise NotFusedError(f"{type(attention).__name__} does not say its head_dim and scaling")
    query_heads = output.in_features // head_dim
    width = sum(part.out_features for part in projections)
    kv_heads = (width // head_dim - query_heads) // 2
    if width != (query_heads + 2 * kv_heads) * head_dim:
        raise NotFusedError(f"{type(attention).__name__} has values of another width than its keys")
    return Layer(
        module=module,
        attention=attention,
        before_attention=_norm(module, "input_layernorm"),
        after_attention=_optional_norm(module, "post_self_attn_layernorm"),
        before_mlp=_norm(module, "post_attention_layernorm"),
        after_mlp=_optional_norm(module, "post_mlp_layernorm"),
        projection=SideBySide(projections),
        output=output,
        gate_up=SideBySide(gates),
        down=down,
        head_norms=_head_norms(attention),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )


def _refuse_others(module: nn.Module, known: Sequence[str]) -> None:
    if module._parameters:
        own = ", ".join(sorted(module._parameters))
        raise NotFusedError(f"{type(module).__name__} has weights of its own ({own})")
    for name, child in module.named_children():
        if name not in known and next(child.parameters(), None) is not None:
            raise NotFusedError(
                f"{type(module).__name__} has a part {name!r} ({type(child).__name__}) that the "
                "fused step does not know"
            )


def _child(module: nn.Module, name: str) -> Any:
    child = getattr(module, name, None)
    if not isinstance(child, nn.Module):
        raise NotFusedError(f"{type(module).__name__} has no part {name!r}")
    return child


def _linear(module: nn.Module, name: str) -> nn.Linear:
    child: nn.Linear = _child(module, name)
    if not is_plain_linear(child):
        raise NotFusedError(
            f"{name} of {type(module).__name__} is {_described(child)}, no plain linear layer"
        )
    return child


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module multiplies with a weight that is an ordinary tensor of floating numbers."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    ordinary = type(weight.data) is Tensor and type(weight) is nn.Parameter
    return ordinary and weight.is_floating_point() and weight.is_contiguous()


def _described(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    kind = type(getattr(weight, "data", weight)).__name__
    return type(module).__name__ + ("" if kind in ("Tensor", "NoneType") else f" with a {kind}")


def _projections(attention: nn.Module) -> list[nn.Linear]:
    return _side_by_side(attention, "qkv_proj", ("q_proj", "k_proj", "v_proj"))


def _gates(mlp: nn.Module) -> list[nn.Linear]:
    return _side_by_side(mlp, "gate_up_proj", ("gate_proj", "up_proj"))


def _side_by_side(module: nn.Module, whole: str, parts: Sequence[str]) -> list[nn.Linear]:
    """The projection that a model has side by side already (Phi-3), or its parts."""
    found = [_linear(module, name) for name in ((whole,) if hasattr(module, whole) else parts)]
    if len({part.bias is None for part in found}) > 1:
        raise NotFusedError(f"some projections of {type(module).__name__} have a bias, others none")
    return found


def _refuse_other_gates(mlp: nn.Module) -> None:
    """Refuse an MLP whose gate is no SiLU."""
    function: Any = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    values = torch.linspace(-4.0, 4.0, 17)
    if not callable(function) or not torch.allclose(function(values), F.silu(values)):
        raise NotFusedError(f"the gate of {type(mlp).__name__} is no SiLU")


def _norm(owner: nn.Module, name: str) -> Norm:
    module: Any = getattr(owner, name, None)
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(epsilon, float):
        kind = "missing" if module is None else f"a {type(module).__name__}"
        raise NotFusedError(f"{name} of {type(owner).__name__} is {kind}, no RMSNorm with a weight")
    if getattr(module, "bias", None) is not None:
        raise NotFusedError(f"{name} of {type(owner).__name__} has a bias")
    return Norm(module, epsilon)


def _optional_norm(owner: nn.Module, name: str) -> Norm | None:
    return _norm(owner, name) if hasattr(owner, name) else None


def _head_norms(attention: nn.Module) -> tuple[Norm, Norm] | None:
    present = [hasattr(attention, name) for name in ("q_norm", "k_norm")]
    if not any(present):
        return None
    query, key = _norm(attention, "q_norm"), _norm(attention, "k_norm")
    if query.epsilon != key.epsilon:
        raise NotFusedError("query and key norms have different epsilons")
    if {len(norm.module.weight) for norm in (query, key)} != {attention.head_dim}:
        raise NotFusedError("query and key norms span more than one head")
    return query, key
