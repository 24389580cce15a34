"""Training relevance predictors on the prompts of tasks, layer by layer.

Every epoch reads every text again: nothing but one layer of one text is held. The labels are what a
context's tokens receive from the tokens after it; see :mod:`catekv.calibration.relevance.labels`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.cache import plain_layers
from catekv.cache.cache import RaggedCache
from catekv.calibration.relevance.fitting import FEATURES, LayerFit
from catekv.calibration.relevance.labels import (
    LABELS,
    SCALES,
    WEIGHTS,
    label_of,
    mass,
    rank_correlation,
    recall,
    split_attention,
    weights_of,
)
from catekv.calibration.relevance.reading import Text, visit_layers
from catekv.errors import UserError
from catekv.evaluation.options import MOST_EPOCHS, MOST_RATE, MOST_UNITS, option
from catekv.methods.atskv.files import PredictorSet
from catekv.methods.atskv.relevance import (
    ATTENTION_FEATURES,
    KINDS,
    PredictorConfig,
    RelevancePredictor,
    predictor_inputs,
    queries_that_see,
)
from catekv.methods.base import Observed

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: share of tokens kept for which recall and mass are reported: what the default level keeps
KEPT = 0.3
#: quantiles of the predicted relevance that are stored: where thresholds would lie
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class TrainingSettings:
    """How predictors are trained.

    Args:
        epochs, learning_rate: of Adam.
        batch_tokens: tokens per step; 0: all of a prompt, as published.
        label: ``later`` or ``received`` (:data:`catekv.calibration.relevance.labels.LABELS`).
        scale: ``rank`` or ``max`` (:data:`catekv.calibration.relevance.labels.SCALES`).
        weight: ``mass`` or ``none`` (:data:`catekv.calibration.relevance.labels.WEIGHTS`).
        features: groups of inputs to use.
        kind, width, feature_dim, attention_feature, causal_normalised: of the predictor, see
            :class:`~catekv.methods.atskv.relevance.PredictorConfig`.
        seed: of first weights and order.
    """

    epochs: int = option(5, "(default: {default})", least=1, most=MOST_EPOCHS)
    learning_rate: float = option(1e-3, "of Adam (default: {default})")
    batch_tokens: int = option(128, "per step; 0: a whole text (default: {default})")
    label: str = option(
        "later",
        "attention from the tokens after the context (later, default) or from the context itself "
        "(received, as published)",
        choices=LABELS,
    )
    scale: str = option(
        "rank",
        "of labels: rank within the text (default) or share of the largest (max, as published)",
        choices=SCALES,
    )
    weight: str = option(
        "mass",
        "of tokens in the loss: by the attention they receive (mass, default) or alike (none, as "
        "published)",
        choices=WEIGHTS,
    )
    features: tuple[str, ...] = option(FEATURES, "inputs (default: all)", choices=FEATURES)
    kind: str = option("mlp", "of predictor (default: {default})", choices=KINDS)
    width: int = option(32, "hidden units (default: {default})", least=1, most=MOST_UNITS)
    feature_dim: int = option(
        64, "numbers per hidden state (default: {default})", least=1, most=MOST_UNITS
    )
    attention_feature: str = option(
        "vector", "of received attention (default: {default})", choices=ATTENTION_FEATURES
    )
    causal_normalised: bool = option(
        True, "divide received attention by the queries that can see a token (default)"
    )
    seed: int = option(42, "of samples, first weights and order (default: {default})")

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"epochs {self.epochs} must be at least 1")
        if not 0 < self.learning_rate <= MOST_RATE:
            raise UserError(
                f"learning rate {self.learning_rate} must be above 0, at most {MOST_RATE:g}"
            )
        if self.batch_tokens < 0:
            raise UserError(f"batch tokens {self.batch_tokens} must be at least 0 (0: all)")
        for what, value, known in (
            ("label", self.label, LABELS),
            ("scale", self.scale, SCALES),
            ("weight", self.weight, WEIGHTS),
        ):
            if value not in known:
                raise UserError(f"unknown {what} {value!r}; use {' or '.join(known)}")
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features:
            raise UserError(
                f"unknown features {', '.join(unknown) or '(none)'}; use some of "
                f"{', '.join(FEATURES)}"
            )

    def config(self, model: CateKVModel) -> PredictorConfig:
        """The predictor for a model."""
        from catekv.models.compat import text_config

        return PredictorConfig(
            int(text_config(model.config).hidden_size),
            model.shape.query_heads,
            self.kind,
            self.width,
            self.feature_dim,
            self.attention_feature,
            self.causal_normalised,
        )


@dataclass(frozen=True)
class Quality:
    """Means over held-out texts of one layer.

    Attributes:
        loss: mean (weighted) squared error. correlation: Spearman's, of relevance and label.
        recall: share of the truly attended tokens among the :data:`KEPT` most relevant.
        mass: share of the attention from later tokens that those received.
        quantiles: of the relevance, at :data:`LEVELS`. above, below: share of tokens whose
            relevance exceeds 0.8, the published threshold of promotion, or is under 0.2, that of
            demotion.
    """

    loss: float
    correlation: float
    recall: float
    mass: float
    quantiles: tuple[float, ...]
    above: float
    below: float


@dataclass(frozen=True)
class Trained:
    """Predictors and how their training went.

    Attributes:
        curve: per epoch the mean losses over all layers, ``train`` and ``held_out`` (None without
            held-out texts), and the mean ``correlation``.
        quality: per layer, on the held-out texts; empty without any.
    """

    predictors: PredictorSet
    curve: list[dict[str, float | None]] = field(default_factory=list)
    quality: tuple[Quality, ...] = ()


def train(
    model: CateKVModel,
    texts: Sequence[Text],
    held_out: Sequence[Text] = (),
    settings: TrainingSettings | None = None,
    *,
    meta: Mapping[str, Any] | None = None,
    chunk_size: int = 8192,
    progress: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train one predictor per layer.

    Args:
        texts: to learn from; held_out: to measure on, never learnt from.
        meta: what else the file should say.
        progress: called with a word after every text that was read.

    Raises:
        UserError: no texts, or layers that methods do not see (sliding windows, linear
            attention).
    """
    settings = settings or TrainingSettings()
    if not texts:
        raise UserError("training needs at least one text; raise --samples")
    course = _Course(model, settings, chunk_size, progress)
    for text in texts:
        course.read(text, course.measure, "inputs")
    _check_seen(model, [fit.layer for fit in course.fits if not fit.standard.prompts])
    curve: list[dict[str, float | None]] = []
    quality: tuple[Quality, ...] = ()
    for epoch in range(settings.epochs):
        course.losses.clear()
        for index in torch.randperm(len(texts), generator=course.generator).tolist():
            course.read(texts[index], course.learn, f"epoch {epoch + 1}")
        fitted = PredictorSet(tuple(fit.finished() for fit in course.fits))
        quality = assess(model, fitted, held_out, settings, chunk_size) if held_out else ()
        curve.append(
            {
                "train": statistics.fmean(course.losses),
                "held_out": _mean(layer.loss for layer in quality),
                "correlation": _mean(layer.correlation for layer in quality),
            }
        )
    stored = {
        "settings": {**asdict(settings), "features": list(settings.features)},
        "curve": curve,
        "held_out": [asdict(layer) for layer in quality],
        "levels": list(LEVELS),
        **(meta or {}),
    }
    return Trained(PredictorSet(fitted.layers, meta=stored), curve, quality)


class _Course:
    """What the layers' predictors have learnt so far, and the readings that teach them."""

    def __init__(
        self,
        model: CateKVModel,
        settings: TrainingSettings,
        chunk_size: int,
        progress: Callable[[str], None],
    ) -> None:
        self.model = model
        self.settings = settings
        self.chunk_size = chunk_size
        self.progress = progress
        self.config = settings.config(model)
        self.fits = [
            LayerFit(self.config, layer, settings.seed, settings.features, settings.learning_rate)
            for layer in range(model.shape.layers)
        ]
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.losses: list[float] = []

    def read(self, text: Text, visit: Callable[[Observed, int], None], what: str) -> None:
        """Show ``visit`` every layer's observation of a text, with the number of later tokens."""
        later = len(text.later)
        visit_layers(self.model, text, lambda observed: visit(observed, later), self.chunk_size)
        self.progress(what)

    def measure(self, observed: Observed, later: int) -> None:
        """Add to the means and deviations by which inputs are standardised."""
        inputs, _, _ = _example(observed, later, self.config, self.settings)
        self.fits[observed.layer].standard.add(inputs)

    def learn(self, observed: Observed, later: int) -> None:
        """Take the steps of one text in one layer."""
        inputs, labels, weights = _example(observed, later, self.config, self.settings)
        order = torch.randperm(len(inputs), generator=self.generator).to(inputs.device)
        batches = order.split(self.settings.batch_tokens or len(inputs))
        self.losses.append(self.fits[observed.layer].learn(inputs, labels, weights, batches))


def _check_seen(model: CateKVModel, unseen: Sequence[int]) -> None:
    """Refuse a model of whose layers some are not shown to methods."""
    if unseen:
        layers = RaggedCache(model.config, None).layers
        raise UserError(
            f"{plain_layers.described(layers, unseen)} of this model "
            "are not compressed; predictors need a model whose layers all attend to the whole "
            "context"
        )


@torch.no_grad()
def assess(
    model: CateKVModel,
    predictors: PredictorSet,
    texts: Sequence[Text],
    settings: TrainingSettings,
    chunk_size: int = 8192,
) -> tuple[Quality, ...]:
    """How well predictors say what texts' later tokens attend to, layer by layer."""
    numbers: list[list[Quality]] = [[] for _ in predictors.layers]
    layers = [predictor.to(model.device) for predictor in predictors.layers]

    for text in texts:
        later = len(text.later)

        def visit(observed: Observed, later: int = later) -> None:
            before, after = split_attention(observed, later)
            relevance = predict(layers[observed.layer], observed, before)
            numbers[observed.layer].append(_quality(relevance, before, after, settings))

        visit_layers(model, text, visit, chunk_size)
    return tuple(_averaged(found) for found in numbers)


def predict(predictor: RelevancePredictor, observed: Observed, sums: Tensor) -> Tensor:
    """Relevance [context] of the tokens that ``sums`` [1, query_heads, context] are of, computed
    the way decoding computes it."""
    assert observed.hidden_states is not None
    tokens = sums.shape[-1]
    static = predictor.static_part(observed.hidden_states[:, :tokens], observed.layer)
    return predictor.from_static(static, sums, _observers(predictor.config, sums))[0]


def _observers(config: PredictorConfig, sums: Tensor) -> Tensor:
    observers = queries_that_see(sums.shape[-1], sums.device)
    if config.causal_normalised:
        return observers
    return torch.full_like(observers, float(sums.shape[-1]))


def _example(
    observed: Observed, later: int, config: PredictorConfig, settings: TrainingSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [context, inputs], labels and weights [context] of one layer."""
    assert observed.hidden_states is not None
    before, after = split_attention(observed, later)
    hidden = observed.hidden_states[:, : before.shape[-1]]
    inputs = predictor_inputs(hidden, before, _observers(config, before), observed.layer, config)
    return (
        inputs[0],
        label_of(before, after, settings.label, settings.scale),
        weights_of(before, after, settings.label, settings.weight),
    )


def _quality(
    relevance: Tensor, before: Tensor, after: Tensor, settings: TrainingSettings
) -> Quality:
    labels = label_of(before, after, settings.label, settings.scale)
    weights = weights_of(before, after, settings.label, settings.weight)
    received = after[0].sum(dim=0)
    ordered = relevance.sort().values
    return Quality(
        float((weights * (relevance - labels).square()).mean()),
        rank_correlation(relevance, received),
        recall(relevance, received, KEPT),
        mass(relevance, received, KEPT),
        tuple(float(ordered[round(level * (len(ordered) - 1))]) for level in LEVELS),
        float((relevance > 0.8).float().mean()),
        float((relevance < 0.2).float().mean()),
    )


def _averaged(found: Sequence[Quality]) -> Quality:
    rows = [asdict(one) for one in found]
    means: dict[str, Any] = {
        name: statistics.fmean(row[name] for row in rows) for name in rows[0] if name != "quantiles"
    }
    quantiles = zip(*(one.quantiles for one in found), strict=True)
    return Quality(quantiles=tuple(statistics.fmean(values) for values in quantiles), **means)


def _mean(values: Any) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
