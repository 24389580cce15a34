"""What a prefill notes of a forward beside keys, values and queries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from catekv.cache.cache import RaggedCache
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.models.compat import decoder_layers

#: Called with a cache layer and the states [batch, tokens, hidden_size] that a module reads.
Reader = Callable[[RaggedLayer, Tensor], None]


@contextlib.contextmanager
def hidden_states_shown(
    model: torch.nn.Module, cache: RaggedCache, read: Reader, *, to_attention: bool = False
) -> Iterator[None]:
    """Within it ``read`` is shown what every decoder layer of the cache reads, or with
    ``to_attention`` what its attention does: the same behind the norm.

    Raises:
        UserError: decoder layers without an attention module of the usual name.
    """

    def reader(own: RaggedLayer) -> Callable[..., None]:
        def show(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            read(own, arguments[0] if arguments else options["hidden_states"])

        return show

    with contextlib.ExitStack() as stack:
        for index, (layer, own) in enumerate(zip(decoder_layers(model), cache.layers, strict=True)):
            if not isinstance(own, RaggedLayer):
                continue
            module: Any = getattr(layer, "self_attn", None) if to_attention else layer
            if module is None:
                raise UserError(
                    f"{type(model).__name__}: layer {index} has no module self_attn; use a method "
                    "that does not look at what attention reads"
                )
            hook = module.register_forward_pre_hook(reader(own), with_kwargs=True)
            stack.callback(hook.remove)
        yield
