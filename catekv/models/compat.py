"""The places where releases of transformers differ, or where its internals are touched at all."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from catekv.errors import UserError


def text_config(config: Any) -> Any:
    """The decoder's part of a (possibly composite) configuration."""
    return config.get_text_config(decoder=True)


class AttentionSizes(NamedTuple):
    """What one attention layer has, as a configuration says."""

    query_heads: int
    kv_heads: int
    head_dim: int


def attention_sizes(config: Any, layer: int | None = None) -> AttentionSizes:
    """Sizes of one layer; None: of the first one with full attention, whose cache is compressed
    (in some models the others have other sizes). Zeros for models without attention."""
    own = text_config(config)
    if getattr(own, "is_heterogeneous", False):
        if layer is None:
            kinds = list(getattr(own, "layer_types", None) or ())
            layer = kinds.index("full_attention") if "full_attention" in kinds else 0
        own = own.per_layer_config[layer]
    heads = int(getattr(own, "num_attention_heads", None) or 0)
    if not heads:
        return AttentionSizes(0, 0, 0)
    kv_heads = getattr(own, "num_key_value_heads", None) or heads
    head_dim = getattr(own, "head_dim", None) or own.hidden_size // heads
    return AttentionSizes(heads, int(kv_heads), int(head_dim))


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder layers in order: the module list as long as the configuration says."""
    count = text_config(model.config).num_hidden_layers
    base: Any = getattr(model, "model", model)
    for owner in (base, getattr(base, "language_model", None)):
        layers = getattr(owner, "layers", None)
        if isinstance(layers, torch.nn.ModuleList) and len(layers) == count:
            return list(layers)
    lists = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise UserError(f"{type(model).__name__}: the list of decoder layers was not found")
    return list(lists[0])


def output_projections(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """What every layer's attention multiplies the outputs of its heads with, as views of the
    weights [query_heads, head_dim, hidden_size] (of this process; empty for layers without
    attention).

    Raises:
        UserError: weights of another form, for example quantised ones.
    """
    found = []
    for index, layer in enumerate(decoder_layers(model)):
        attention = getattr(layer, "self_attn", None)
        weight = getattr(getattr(attention, "o_proj", None), "weight", torch.empty(0, 0))
        if hasattr(weight, "to_local"):
            weight = weight.to_local()
        head_dim = attention_sizes(model.config, index).head_dim
        if (
            (attention is not None and not weight.numel())
            or not weight.is_floating_point()
            or weight.shape[-1] % head_dim
        ):
            raise UserError(
                f"{type(model).__name__}: layer {index} has no plain output projection o_proj; use "
                "a method that does not look at it, or weights that are not quantised"
            )
        found.append(weight.detach().unflatten(-1, (-1, head_dim)).permute(1, 2, 0))
    return tuple(found)


def context_window(config: Any) -> int | None:
    """Largest number of tokens the model was made for, or None if it does not say.

    Rotary positions that are scaled reach the original length times their factor, which many
    configurations do not write into ``max_position_embeddings``.
    """
    text = text_config(config)
    value = getattr(text, "max_position_embeddings", None)
    if not value:
        return None
    if not isinstance(value, int | float) or value < 1:
        raise UserError(
            f"max_position_embeddings {value!r} of the model's configuration is no number of "
            "tokens; correct its config.json"
        )
    return max(int(value), _scaled_window(text, int(value)))


def _scaled_window(text: Any, positions: int) -> int:
    """Tokens that the rotary scaling of a configuration reaches; 0 without one."""
    scaling, per_layer = _rotary_scaling(text)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor")
    if kind == "default" or not factor:
        return 0
    original = getattr(text, "original_max_position_embeddings", None)
    original = original or scaling.get("original_max_position_embeddings")
    if kind == "llama3" and original and original < positions:
        # its factor shapes the frequencies; the length is the one of the configuration
        return 0
    if original is None and per_layer and kind not in ("yarn", "longrope", "llama3"):
        # Gemma 3 states the length that its factor leads to
        return 0
    return int(min(original or positions, positions) * float(factor))


def _rotary_scaling(text: Any) -> tuple[dict[str, Any], bool]:
    """Parameters of the rotary positions in layers that see the whole context, and whether other
    layers have their own. Configurations of remote code know the old spelling only."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(text, name, None)
        if not isinstance(found, dict) or not found:
            continue
        nested = {key: value for key, value in found.items() if isinstance(value, dict)}
        if not nested or "rope_type" in found:
            return found, False
        return nested.get("full_attention") or next(iter(nested.values())), True
    return {}, False


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """A cache under the name that the model's forward has for it: ``cache`` since transformers
    5.24, ``past_key_values`` before it and in remote code."""
    model = getattr(model, "_orig_mod", model)
    adapted = getattr(model, "get_base_model", None)
    # adapters pass on what they do not know
    kind: Any = type(adapted() if callable(adapted) else model)
    return {_cache_name(kind): cache}


@functools.cache
def _cache_name(kind: type) -> str:
    named = "cache" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    return "cache" if named else "past_key_values"


def generate_cache_argument(cache: Any) -> dict[str, Any]:
    """A cache as transformers' ``generate`` takes it."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return {"cache" if (major, minor) >= (5, 24) else "past_key_values": cache}


def input_device(model: Any) -> torch.device:
    """Where token ids go: the device of the embeddings, or the one that accelerate brings them to
    if their weights are offloaded. ``meta`` if the model has no weights at all."""
    embeddings = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type != "meta":
        return device
    hook = getattr(embeddings, "_hf_hook", None)
    for part in [hook, *getattr(hook, "hooks", ())]:
        target = getattr(part, "execution_device", None)
        if target is not None:
            return torch.device("cuda", target) if isinstance(target, int) else torch.device(target)
    return device


def set_attention(model: torch.nn.Module, name: str) -> None:
    """Switch a loaded model to a registered attention implementation."""
    if "flash" in name:
        # set_attn_implementation would look for a kernel package of that name; the base was
        # loaded, and so checked, before
        for module in model.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = name
        return
    model.set_attn_implementation(name)  # type: ignore[operator]


@contextlib.contextmanager
def attention_named(
    model: torch.nn.Module, name: str, function: Callable[..., Any]
) -> Iterator[None]:
    """Within it the model attends with ``function`` and builds no masks; the name is new."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, lambda *arguments, **options: None)
    configurations: dict[int, Any] = {
        id(module.config): module.config
        for module in model.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configurations.items()}
    try:
        for config in configurations.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configurations.items():
            config._attn_implementation = before[key]


@contextlib.contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Within it bars are drawn where somebody sees them move: transformers draws one of its own
    over the tensors of a GGUF file, and in a log each of its states stays."""
    if sys.stderr.isatty():
        yield
        return
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            yield
    finally:
        # a bar goes back to the beginning of its line; all else is said as it was
        lines = (line for line in written.getvalue().split("\n") if line and "\r" not in line)
        sys.stderr.write("".join(f"{line}\n" for line in lines))


def tensor_parallel_options(config: Any, processes: int) -> dict[str, Any]:
    """Options of ``from_pretrained`` that share a model among the processes of the default group,
    as the model's own plan says.

    Raises:
        UserError: the model has no such plan, or a package is missing.
    """
    from importlib.util import find_spec

    from transformers.distributed import DistributedConfig

    name = type(config).__name__
    if not getattr(text_config(config), "base_model_tp_plan", None):
        raise UserError(
            f"transformers has no tensor-parallel plan for {name}; use data parallelism, or a "
            "larger device"
        )
    if find_spec("accelerate") is None:
        raise UserError(
            "tensor parallelism needs the package accelerate; pip install 'catekv[parallel]'"
        )
    return {"distributed_config": DistributedConfig(tp_size=processes, tp_plan="auto")}


def shares_kv_heads(config: Any) -> bool:
    """Whether tensor-parallel processes hold a part of the KV heads each. Where the projection's
    output is gathered (Phi-3) all processes hold all heads."""
    plan = getattr(text_config(config), "base_model_tp_plan", None) or {}
    projections = ("k_proj", "qkv_proj", "query_key_value")
    return any(
        key.rpartition(".")[2] in projections and style == "colwise" for key, style in plan.items()
    )
