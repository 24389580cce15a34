"""Gradients of a text's loss by the outputs of all heads, from one backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.calibration.relevance.reading import Text
from catekv.models.compat import decoder_layers

if TYPE_CHECKING:
    from catekv.model import CateKVModel


def output_gradients(model: CateKVModel, text: Text) -> dict[int, Tensor]:
    """Gradient of the later tokens' summed negative log likelihood by the outputs of the heads,
    before their projection, at the later tokens: float32 [later, query_heads, head_dim] by layer.

    All layers hold their activations until the pass is over; no weight gets a gradient.
    """
    outputs: dict[int, Tensor] = {}

    def recorder(layer: int) -> Any:
        def record(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            outputs[layer] = arguments[0]

        return record

    attentions: list[Any] = [
        getattr(layer, "self_attn", None) for layer in decoder_layers(model.model)
    ]
    hooks = [
        attention.o_proj.register_forward_pre_hook(recorder(index))
        for index, attention in enumerate(attentions)
        if hasattr(attention, "o_proj")
    ]
    later = len(text.later)
    ids = torch.tensor([[*text.context, *text.later]], device=model.device)
    try:
        with torch.enable_grad():
            # the weights are left alone: the graph begins at the embeddings
            embeddings = model.model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = model.model(
                inputs_embeds=embeddings, use_cache=False, logits_to_keep=later + 1
            ).logits[0, :-1]
            loss = F.cross_entropy(logits.float(), ids[0, -later:], reduction="sum")
            parts = torch.autograd.grad(loss, list(outputs.values()))
    finally:
        for hook in hooks:
            hook.remove()
    dim = model.shape.head_dim
    return {
        layer: part[0, -later:].float().unflatten(-1, (-1, dim))
        for layer, part in zip(outputs, parts, strict=True)
    }
