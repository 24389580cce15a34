"""The fused step tried against the modules it takes the place of, on random states.

Norms by themselves, every layer with random keys and values behind it, and the whole model. What
the torch definitions compute in the model's own order is the same to the bit; products of weights
side by side, and kernels, may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from catekv import kernels
from catekv.cache.attention import no_masks
from catekv.cache.continuation import difference, tolerance, trial_ids
from catekv.decode.decoder_parts import Decoder, NotFusedError
from catekv.models.compat import cache_argument, context_window, input_device

#: Error in the 2-norm that rounding explains, as a share of what is right.
ALLOWED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
#: Sequences of a trial, and the tokens behind which they go on.
BATCH, PAST = 2, 32
#: Where the second one ends that the model says nothing about.
SHORT_WINDOW = 2048
#: Size of the states that a layer is tried with: what it adds to them must not be lost in rounding.
SIZE = 0.05
#: How far apart the attention logits of a trial are (standard deviation).
SPREAD = 2.0


class Step(Protocol):
    """What a proof needs of :class:`catekv.decode.fused.FusedStep`."""

    decoder: Decoder

    def layer(
        self,
        index: int,
        states: Tensor,
        residual: Tensor | None,
        tables: tuple[Tensor, Tensor],
        held: Any,
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Any) -> Tensor: ...


class TrialLayer(CacheLayerMixin):
    """Random keys (of this size) and values, and one column for the newest token."""

    def __init__(self, parts: Any, size: float = 1.0):
        super().__init__()
        weight = parts.output.weight
        shape = (BATCH, parts.kv_heads, PAST, parts.head_dim)
        self.keys: Any = random(*shape, like=weight, seed=1) * size
        self.values: Any = random(*shape, like=weight, seed=2)
        self.queries: Any = None
        self.length = torch.full((1,), PAST, dtype=torch.int32, device=weight.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to be done."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        kernels.append(self.keys, self.values, key_states, value_states, self.length)
        return self.keys, self.values

    def append_by(self, write: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        self.queries = write(self.keys, self.values, self.length)
        return self.queries, self.keys, self.values

    def get_seq_length(self) -> int:
        return PAST - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return PAST, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


def random(*shape: int, like: Tensor, seed: int) -> Tensor:
    """Normal numbers in the type and on the device of ``like``, the same on every device."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(device=like.device, dtype=like.dtype)


def prove_norms(decoder: Decoder) -> None:
    """Raise :class:`NotFusedError` unless every norm is the RMSNorm of Llama."""
    for norm in (decoder.norm, *(norm for layer in decoder.layers for norm in layer.all_norms())):
        weight = norm.module.weight
        states = random(BATCH, 1, len(weight), like=weight, seed=3)
        states[1] *= norm.epsilon**0.5  # where epsilon counts
        # a weight of zeros (or ones less one) would hide what is done with it
        found = kernels.rms_norm(states, weight, norm.epsilon)[1]
        if _error(found, norm.module(states)) > ALLOWED.get(weight.dtype, 1e-5):
            kind = type(norm.module).__name__
            raise NotFusedError(f"{kind} computes something else than the RMSNorm of Llama")


def fault_of_keys(model: Any, step: Step) -> str | None:
    """What is wrong with the keys of the first layer; None if they are right."""
    found, wanted, _ = _layer_twice(model, step, 0)
    error = _error(found.values, wanted.values)
    if error > ALLOWED.get(found.values.dtype, 1e-5):
        raise NotFusedError(f"the values of its first layer are others (off by {error:.1e})")
    error = _error(found.keys[:, :, -1], wanted.keys[:, :, -1])
    if error <= ALLOWED.get(found.keys.dtype, 1e-5):
        return None
    return f"its keys are rotated in another way (off by {error:.1e})"


def prove(model: Any, step: Step) -> None:
    """Raise :class:`NotFusedError` unless every layer, and the model, computes what it does in
    transformers."""
    for index in range(len(step.decoder.layers)):
        found, wanted, states = _layer_twice(model, step, index)
        for name in ("values", "keys"):
            error = _error(getattr(found, name)[:, :, -1], getattr(wanted, name)[:, :, -1])
            _refuse_beyond(error, found.keys.dtype, f"the {name} of its layer {index} are others")
        before, ours, theirs = states
        added = float((theirs - before).double().norm())
        rounding = torch.finfo(ours.dtype).eps * float(theirs.double().norm())
        error = max(0.0, float((ours - theirs).double().norm()) - rounding) / (added or 1.0)
        if not bool(ours.isfinite().all()):
            error = float("inf")
        _refuse_beyond(error, ours.dtype, f"its layer {index} computes something else")
    _prove_whole(model, step)


def _refuse_beyond(error: float, dtype: torch.dtype, what: str) -> None:
    if not error <= ALLOWED.get(dtype, 1e-5):
        raise NotFusedError(f"{what} (off by {error:.1e})")


def _error(found: Tensor, wanted: Tensor) -> float:
    """``|found - wanted| / |wanted|``; infinite where a number is none."""
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    size = float(wanted.double().norm())
    return float((found.double() - wanted.double()).norm()) / (size or 1.0)


def _layer_twice(
    model: Any, step: Step, index: int
) -> tuple[TrialLayer, TrialLayer, tuple[Tensor, Tensor, Tensor]]:
    """One layer of the step and of the model on the same states.

    Returns:
        What both wrote; the states before the layer, after it by the step, and by the model.
    """
    parts = step.decoder.layers[index]
    width = parts.output.out_features
    weight = parts.output.weight
    residual, added = (SIZE * random(BATCH, 1, width, like=weight, seed=seed) for seed in (4, 5))
    positions = _positions(model)
    tables = step.decoder.rotary(added, position_ids=positions)
    first = TrialLayer(parts)
    step.layer(index, added, residual, tables, first)
    spread = float(first.queries.float().norm() / len(first.queries) ** 0.5)
    spread *= float(parts.attention.scaling) / first.queries.shape[1] ** 0.5
    found, wanted = (TrialLayer(parts, SPREAD / (spread or 1.0)) for _ in range(2))
    ours = torch.add(*step.layer(index, added, residual, tables, found))
    before = residual + added
    theirs = parts.module(
        before,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=tables,
        use_cache=True,
        **cache_argument(model, Cache(layers=[wanted] * (index + 1))),
    )
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    return found, wanted, (before, ours, theirs)


def _positions(model: Any) -> Tensor:
    """Near the beginning, and the last one of the model's window: some models scale their queries
    beyond a length."""
    last = context_window(model.config) or SHORT_WINDOW
    return torch.tensor([[PAST - 1], [last - 1]], device=input_device(model))


def _prove_whole(model: Any, step: Step) -> None:
    """The same for what comes before the first layer and after the last one."""
    decoder = step.decoder
    ids = trial_ids(model).flatten()
    tokens = torch.stack([ids[:1], ids[-1:]])
    positions = _positions(model)
    caches = [Cache(layers=[TrialLayer(parts) for parts in decoder.layers]) for _ in range(2)]
    seen: list[Tensor] = []
    watched = [
        decoder.layers[0].module.register_forward_pre_hook(lambda _, given: seen.append(given[0])),
        decoder.head.register_forward_hook(lambda _, __, given: seen.append(given)),
    ]
    try:
        with no_masks():
            wanted = model(
                tokens, position_ids=positions, **cache_argument(model, caches[0]),
                use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
    finally:
        for hook in watched:
            hook.remove()
    if not torch.equal(seen[0], decoder.embeddings(tokens)):
        raise NotFusedError("something happens between its embeddings and its first layer")
    if not torch.equal(seen[-1][:, -1], wanted):
        raise NotFusedError("something happens to its logits behind the head")
    off = difference(step(tokens, positions, caches[1]), wanted)
    if not off <= 4 * tolerance(model, wanted):
        raise NotFusedError(f"its logits are others (off by {off:.1e})")
