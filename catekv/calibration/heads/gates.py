"""DuoAttention's gates (Xiao et al., 2025): what a head loses by streaming, learned."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.cache.cache import uncompressed_layers
from catekv.calibration.heads.head_scores import HeadScores
from catekv.calibration.heads.passkeys import PasskeyText, passkey_text
from catekv.errors import UserError
from catekv.evaluation.options import COUNT, MOST_RATE, option
from catekv.evaluation.records.environment import versions
from catekv.models.compat import attention_named
from catekv.models.shape import config_hash

if TYPE_CHECKING:
    from catekv.model import CateKVModel

KIND = "duo_gates"
#: Share of the steps in which the rate rises, and of those in which it falls again.
_RAMP = 5
#: Least factor of the rate on either side.
_LEAST = 0.1


@dataclass(frozen=True)
class GateTraining:
    """How gates are trained; the published settings where they fit a small model."""

    steps: int = option(
        2000, "texts, one after another (default: {default}, as published)", least=1, most=10**6
    )
    length: int = option(
        4096, "tokens of a text (default: {default}; published: 1K to 32K)", **COUNT
    )
    passkeys: int = option(
        10, "facts of a text, asked for at its end (default: {default})", **COUNT
    )
    codes: int = option(
        4, "numbers of a fact (default: {default}; published: 32 code words)", least=1, most=64
    )
    sinks: int = option(128, "first tokens of a streaming head (default: {default})", **COUNT)
    recent: int = option(256, "last tokens of a streaming head (default: {default})", **COUNT)
    rate: float = option(
        0.02, "of AdamW at its highest (default: {default})", least=0, most=MOST_RATE
    )
    weight: float = option(0.05, "of the gates' mean in the loss (default: {default})", least=0)
    reward: float | None = option(
        None,
        "penalise gates only while more than this share of the answers' tokens is foretold as by "
        "the full model, and the more the better (RLKV's rule, published: 0.5; default: always)",
        least=0,
        most=1,
    )
    seed: int = option(42, "of the texts (default: {default})")


class GateLoss(NamedTuple):
    """Mean squared distance of hidden states, mean gate, and their weighted sum."""

    distill: Tensor
    penalty: Tensor
    loss: Tensor


def gate_loss(
    full: Tensor, mixed: Tensor, labelled: Tensor, gates: Tensor, weight: float
) -> GateLoss:
    """What the gates are trained by.

    Args:
        full, mixed: last hidden states [tokens, size] of the model and of the model with gates.
        labelled: bool [tokens], positions that count.
        gates: [layers, kv_heads].
        weight: of the mean absolute gate.
    """
    distill = (full[labelled].float() - mixed[labelled].float()).square().mean(dim=-1).mean()
    penalty = gates.abs().mean()
    return GateLoss(distill, penalty, distill + weight * penalty)


def rewarded_weight(weight: float, reward: float, least: float) -> float:
    """RLKV's weight of the penalty: nothing up to a mean reward of ``least``, above it ``weight``
    times the reward's exponential less 1."""
    return weight * math.expm1(reward) if reward > least else 0.0


def rate_factor(step: int, steps: int) -> float:
    """Of the learning rate at a step, from 0: a ramp, a plateau and a ramp."""
    ramp = max(1, steps // _RAMP)
    return min(1.0, max((step + 1) / ramp, _LEAST), max((steps - step) / ramp, _LEAST))


def streaming_mask(tokens: int, sinks: int, recent: int, device: torch.device) -> Tensor:
    """Which keys a streaming head's queries see: bool [tokens, tokens]."""
    positions = torch.arange(tokens, device=device)
    distance = positions[:, None] - positions
    return (distance >= 0) & ((distance < recent) | (positions < sinks))


def check_texts(settings: GateTraining) -> None:
    """``UserError`` for texts that streaming heads see whole."""
    if settings.sinks + settings.recent >= settings.length:
        raise UserError(
            f"--sinks {settings.sinks} and --recent {settings.recent} are the whole of a length of "
            f"{settings.length}; give a larger --length, or smaller ones"
        )


def text_of(model: CateKVModel, settings: GateTraining, step: int) -> PasskeyText:
    """The text of a step; ``UserError`` for a length that does not hold the passkeys."""
    return passkey_text(
        model.tokenizer, settings.length, settings.passkeys, settings.codes, settings.seed, step
    )


def train_gates(
    model: CateKVModel,
    settings: GateTraining,
    *,
    origin: dict[str, Any] | None = None,
    advance: Callable[[float], object] = lambda loss: None,
) -> HeadScores:
    """Gates of all heads in [0, 1].

    A head's attention is ``gate`` times its own plus the rest times that of a streaming head; the
    model with gates is to have the model's last hidden states.

    The weights stay as they are. Every step reads one text twice, once with gates and gradients,
    whose activations of all layers are held.

    Args:
        origin: what the recipe says of the model besides its configuration.
        advance: called with the loss of every step.

    Raises:
        UserError: a text that streaming heads see whole, or layers that are not compressed (sliding
            windows, linear attention).
    """
    check_texts(settings)
    plain = uncompressed_layers(model.config)
    if plain:
        raise UserError(
            f"{plain} of this model are not compressed; gates are trained for models whose layers "
            "all attend to the whole context"
        )
    shape = model.shape
    started, processor = time.perf_counter(), time.process_time()
    gates = torch.ones(shape.layers, shape.kv_heads, device=model.device, requires_grad=True)
    optimiser = torch.optim.AdamW([gates], lr=settings.rate, weight_decay=0.0)
    for step in range(settings.steps):
        text = text_of(model, settings, step)
        with torch.no_grad():
            gates.clamp_(0, 1)
        optimiser.param_groups[0]["lr"] = settings.rate * rate_factor(step, settings.steps)
        loss = _loss_of(model, text, gates, settings)
        if not loss.loss.isfinite():
            raise UserError(
                f"the loss of step {step + 1} is no finite number; give a smaller --rate or "
                "--weight, or --dtype float32"
            )
        (gates.grad,) = torch.autograd.grad(loss.loss, [gates])
        optimiser.step()
        advance(float(loss.loss.detach()))
    found = gates.detach().clamp(0, 1).double().cpu().numpy()
    recipe = {
        "kind": KIND, **asdict(settings), **(origin or {}),
        "config_hash": config_hash(model.config),
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1), "versions": versions(),
    }  # fmt: skip
    return HeadScores(found, recipe)


def _loss_of(
    model: CateKVModel, text: PasskeyText, gates: Tensor, settings: GateTraining
) -> GateLoss:
    ids = torch.tensor([text.ids], device=model.device)
    body = model.model.base_model
    labelled = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - text.labelled
    with torch.no_grad():
        full = body(input_ids=ids, use_cache=False).last_hidden_state[0]
    seen = streaming_mask(ids.shape[1], settings.sinks, settings.recent, ids.device)
    with torch.enable_grad(), _gated(model, gates, seen):
        mixed = body(input_ids=ids, use_cache=False).last_hidden_state[0]
    weight = settings.weight
    if settings.reward is not None:
        with torch.no_grad():
            head = model.model.get_output_embeddings()
            foretold = [head(states[labelled]).argmax(dim=-1) for states in (full, mixed)]
            reward = float((foretold[0] == foretold[1]).double().mean())
        weight = rewarded_weight(weight, reward, settings.reward)
    return gate_loss(full, mixed, labelled, gates, weight)


@contextlib.contextmanager
def _gated(model: CateKVModel, gates: Tensor, seen: Tensor) -> Iterator[None]:
    """Within it every head of the model attends as its gate says."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any,
        scaling: float | None = None, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        for name in ("softcap", "s_aux"):
            if options.get(name) is not None:
                raise UserError(
                    f"{type(module).__name__} changes its attention logits ({name}), which gates "
                    "are not trained with"
                )
        group = query.shape[1] // key.shape[1]
        asked: dict[str, Any] = {"scale": scaling, "enable_gqa": group > 1}
        full = F.scaled_dot_product_attention(query, key, value, is_causal=True, **asked)
        streaming = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, **asked)
        gate = gates[module.layer_idx].repeat_interleave(group)[:, None, None].to(query.dtype)
        return (gate * full + (1 - gate) * streaming).transpose(1, 2).contiguous(), None

    with attention_named(model.model, "catekv_gates", attend):
        yield
