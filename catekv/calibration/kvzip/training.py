"""Training the gates of KVzap on texts: what attention reads says what KVzip+ will score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.calibration.kvzip.repeated import repeated
from catekv.errors import UserError
from catekv.evaluation.options import COUNT, MOST_EPOCHS, MOST_RATE, MOST_UNITS, option
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.kvzap.gates import Gates, Linear

if TYPE_CHECKING:
    from catekv.model import CateKVModel

KINDS = ("mlp", "linear")
#: Scores below this teach as this: their logarithm would outweigh everything else.
LEAST_SCORE = 1e-8
#: Of the ridge regression that makes a linear gate.
RIDGE = 1.0


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained; the defaults are the published ones."""

    kind: str = option("mlp", "of gate: mlp (default) or linear", choices=KINDS)
    hidden: int = option(
        512, "hidden units of an mlp (default: {default})", least=1, most=MOST_UNITS
    )
    tokens: int = option(500, "of each text, drawn by lot (default: {default})", **COUNT)
    epochs: int = option(15, "(default: {default})", least=1, most=MOST_EPOCHS)
    learning_rate: float = option(5e-3, "of AdamW at the start (default: {default})")
    batch_tokens: int = option(512, "per step (default: {default})", **COUNT)
    seed: int = option(42, "of first weights and order (default: {default})")

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate <= MOST_RATE:
            raise UserError(
                f"learning rate {self.learning_rate} must be above 0, at most {MOST_RATE:g}"
            )


@dataclass
class _Lessons:
    """What one layer learns from: inputs [tokens, hidden_size], targets [tokens, kv_heads]."""

    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def all(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.cat(self.inputs).float().to(device), torch.cat(self.targets).to(device)


def train_gates(
    model: CateKVModel,
    texts: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    settings: GateSettings | None = None,
    *,
    meta: Mapping[str, Any] | None = None,
    chunk_size: int = 8192,
    progress: Callable[[str], None] = lambda text: None,
) -> Gates:
    """Train one gate per layer; ``meta["explained"]`` says what share of the held-out targets'
    variance each foretells.

    Args:
        texts: token ids to learn from, each repeated by the model at once; held_out: to measure on.
        meta: what else the file should say.
        progress: called with a word after every text that was read and every layer.

    Raises:
        UserError: no texts, or layers that are not compressed (sliding windows, linear attention).
    """
    settings = settings or GateSettings()
    if not texts or not held_out:
        raise UserError("training needs a text to learn from and one to measure on; give more text")
    generator = torch.Generator().manual_seed(settings.seed)
    lessons, exam = (
        _read(model, part, settings.tokens, generator, chunk_size, progress)
        for part in (texts, held_out)
    )
    networks, explained = [], []
    for own, other in zip(lessons, exam, strict=True):
        inputs, targets = own.all(model.device)
        network = fit(inputs, targets, settings)
        networks.append(network)
        inputs, targets = other.all(model.device)
        found = Gates((network,)).scores(0, inputs[None])[0].T
        spread = (targets - targets.mean(dim=0)).square().sum()
        explained.append(1 - float((found - targets).square().sum() / spread))
        progress("layers")
    said = {"settings": asdict(settings), "explained": explained, **(meta or {})}
    return Gates(tuple(networks), said)


def _read(
    model: CateKVModel,
    texts: Sequence[Sequence[int]],
    tokens: int,
    generator: torch.Generator,
    chunk_size: int,
    progress: Callable[[str], None],
) -> list[_Lessons]:
    """Of every layer some tokens of each text, with the logarithms of their KVzip+ scores."""
    lessons = [_Lessons() for _ in range(model.shape.layers)]
    for ids in texts:
        way = Repeat(len(ids), 0, plus=True)
        drawn = torch.randperm(len(ids), generator=generator)[:tokens]
        for layer in repeated(model, ids, way, chunk_size, inputs=True):
            assert layer.attention_inputs is not None
            scores = layer.repeat_scores[way][0, :, drawn].T
            lessons[layer.index].inputs.append(layer.attention_inputs[0, drawn].cpu())
            lessons[layer.index].targets.append(scores.clamp(min=LEAST_SCORE).log().cpu())
        progress("texts")
    return lessons


def fit(inputs: Tensor, targets: Tensor, settings: GateSettings) -> tuple[Linear, ...]:
    """A gate for inputs [tokens, hidden_size] and targets [tokens, kv_heads], both float32."""
    if settings.kind == "linear":
        return (_ridge(inputs, targets),)
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return _descended(inputs, targets, settings)


def _ridge(inputs: Tensor, targets: Tensor) -> Linear:
    """Least squares with a penalty on the weights and none on the bias."""
    inputs, targets = inputs.double(), targets.double()
    centre, level = inputs.mean(dim=0), targets.mean(dim=0)
    inputs = inputs - centre
    squares = inputs.T @ inputs
    squares.diagonal().add_(RIDGE)
    weight = torch.linalg.solve(squares, inputs.T @ (targets - level)).T
    return weight.float(), (level - weight @ centre).float()


def _descended(inputs: Tensor, targets: Tensor, settings: GateSettings) -> tuple[Linear, ...]:
    """Two layers by AdamW on the mean squared error, the rate falling along a cosine."""
    inner = torch.nn.Linear(inputs.shape[1], settings.hidden)
    outer = torch.nn.Linear(settings.hidden, targets.shape[1])
    network = torch.nn.Sequential(inner, torch.nn.GELU(), outer).to(inputs.device)
    with torch.no_grad():
        # the first steps would do nothing but find the level of the logarithms
        outer.bias.copy_(targets.mean(dim=0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * math.ceil(len(inputs) / settings.batch_tokens)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(inputs)).to(inputs.device).split(settings.batch_tokens):
            loss = F.mse_loss(network(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return tuple((one.weight.detach(), one.bias.detach()) for one in (inner, outer))
