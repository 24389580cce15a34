"""Relevance predictors: labels, standardised fitting, and training on a small random model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from catekv import kernels, methods
from catekv.calibration.relevance.fitting import LayerFit, Standard
from catekv.calibration.relevance.labels import (
    average_ranks,
    label_of,
    mass,
    rank_correlation,
    recall,
    split_attention,
    weights_of,
)
from catekv.calibration.relevance.reading import Text, visit_layers
from catekv.calibration.relevance.training import LEVELS, TrainingSettings, predict, train
from catekv.errors import UserError
from catekv.methods import Observed
from catekv.methods.atskv.files import load_predictors, save_predictors
from catekv.methods.atskv.relevance import (
    PredictorConfig,
    RelevancePredictor,
    predictor_inputs,
    queries_that_see,
    untrained_predictor,
)
from catekv.model import CateKVModel

CONFIG = PredictorConfig(hidden_size=12, query_heads=4, width=6, feature_dim=16)
CONTEXT, LATER = 20, 5


def small_model() -> CateKVModel:
    return CateKVModel(tiny_model("llama"))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed() -> Observed:
    tokens = CONTEXT + LATER
    queries, keys = 2 * random(1, 4, tokens, 8, seed=1), random(1, 2, tokens, 8, seed=2)
    sums = kernels.column_sums(queries, keys, 8**-0.5)
    hidden = random(1, tokens, 12, seed=3)
    return Observed(queries[:, :, -LATER:], keys, keys, 8**-0.5, 2, 4, sums, hidden)


def texts(count: int, seed: int = 0) -> list[Text]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(5, 60, (40,), generator=generator).tolist() for _ in range(count)]
    return [Text(tuple(row[:34]), tuple(row[34:])) for row in draws]


def test_attention_is_split_into_what_the_context_and_what_later_tokens_give() -> None:
    layer = observed()
    tokens = CONTEXT + LATER
    queries = 2 * random(1, 4, tokens, 8, seed=1)
    logits = queries @ layer.keys.repeat_interleave(2, dim=1).transpose(2, 3) * 8**-0.5
    hidden = torch.ones(tokens, tokens).triu(1).bool()
    weights = logits.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    before, after = split_attention(layer, LATER)
    wanted = weights[:, :, :CONTEXT].sum(dim=2)[..., :CONTEXT]
    torch.testing.assert_close(before, wanted, atol=1e-5, rtol=1e-4)
    wanted = weights[:, :, CONTEXT:].sum(dim=2)[..., :CONTEXT]
    torch.testing.assert_close(after, wanted)


def test_labels_are_ranks_or_shares_of_the_largest() -> None:
    after = torch.tensor([[[1.0, 4.0, 2.0, 2.0], [1.0, 0.0, 2.0, 2.0]]])
    before = torch.tensor([[[8.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    # totals 2, 4, 4, 4
    assert label_of(before, after, "later", "rank").tolist() == pytest.approx(
        [0, 2 / 3, 2 / 3, 2 / 3]
    )
    assert label_of(before, after, "later", "max").tolist() == [0.5, 1, 1, 1]
    assert label_of(before, after, "received", "max").tolist() == [1, 0.5, 0, 0]


def test_weights_follow_the_attention_and_are_one_on_average() -> None:
    after = torch.tensor([[[6.0, 1.0, 1.0, 0.0]]])
    weights = weights_of(after, after, "later", "mass")
    assert weights.tolist() == pytest.approx([2.0, 0.75, 0.75, 0.5])
    assert weights_of(after, after, "later", "none").tolist() == [1, 1, 1, 1]


def test_ranks_correlation_recall_and_mass() -> None:
    values = torch.tensor([3.0, 1.0, 3.0, 7.0])
    assert average_ranks(values).tolist() == [1.5, 0, 1.5, 3]
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert math.isnan(rank_correlation(values, torch.ones(4)))
    received = torch.zeros(40)
    received[:4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    relevance = torch.zeros(40)
    relevance[[0, 2]] = 1.0
    # the truly attended are 1 of 40; two are kept
    assert recall(relevance, received, 0.05) == 1.0
    assert recall(1 - relevance, received, 0.05) == 0.0
    assert mass(relevance, received, 0.05) == pytest.approx(0.6)


def test_training_reads_the_inputs_that_inference_reads() -> None:
    layer = observed()
    before, _ = split_attention(layer, LATER)
    assert layer.hidden_states is not None
    for causal in (True, False):
        config = PredictorConfig(12, 4, "mlp", 6, 16, causal_normalised=causal)
        predictor = untrained_predictor(config, 3, 2)
        observers = queries_that_see(CONTEXT) if causal else torch.full((CONTEXT,), float(CONTEXT))
        inputs = predictor_inputs(
            layer.hidden_states[:, :CONTEXT], before, observers, layer.layer, config
        )
        assert inputs.shape == (1, CONTEXT, config.inputs)
        torch.testing.assert_close(predictor(inputs)[0], predict(predictor, layer, before))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_standardising_moves_into_the_weights(kind: str) -> None:
    config = PredictorConfig(12, 4, kind, 6, 16)
    fit = LayerFit(config, 0, 1, ("hidden", "attention", "handcrafted"), 0.01)
    inputs = random(200, config.inputs, seed=5) * 30 + 100
    inputs[:, 3] = 7.0
    fit.standard.add(inputs)
    labels = (inputs[:, 0] > 100).float()
    order = torch.arange(200).split(50)
    first = fit.learn(inputs, labels, torch.ones(200), order)
    for _ in range(30):
        last = fit.learn(inputs, labels, torch.ones(200), order)
    assert last < 0.6 * first
    centre, factor = fit.standard.factors()
    plain = fit.finished()
    torch.testing.assert_close(
        plain(inputs[None])[0], fit.module((inputs - centre) * factor), atol=1e-4, rtol=1e-4
    )
    assert not bool(plain.inner.weight[:, 3].any()), "what never changes says nothing"


def test_features_left_out_have_no_weight() -> None:
    fit = LayerFit(CONFIG, 0, 1, ("handcrafted",), 0.01)
    fit.standard.add(random(50, CONFIG.inputs, seed=1))
    found = fit.finished()
    assert not bool(found.inner.weight[:, :16].any())
    assert bool(found.inner.weight[:, 16:].any())


def test_far_outliers_do_not_set_the_scale() -> None:
    standard = Standard()
    inputs = random(200, 2, seed=8)
    inputs[0] = 1e6
    standard.add(inputs)
    assert standard.size is not None
    assert float(standard.size.max()) < 2


def test_layers_are_visited_in_order_and_not_kept() -> None:
    model = small_model()
    seen: list[tuple[int, int, int]] = []

    def visit(layer: Observed) -> None:
        seen.append((layer.layer, layer.tokens, layer.queries.shape[2]))

    visit_layers(model, texts(1)[0], visit, chunk_size=16)
    assert seen == [(layer, 40, 6) for layer in range(model.shape.layers)]


def test_training_learns_saves_and_is_used(tmp_path: Path) -> None:
    model = small_model()
    settings = TrainingSettings(epochs=4, batch_tokens=16, width=8, feature_dim=16)
    trained = train(model, texts(8), texts(2, seed=1), settings, meta={"model": "tiny"})
    losses = [row["train"] for row in trained.curve]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0]
    assert len(trained.quality) == model.shape.layers
    assert all(len(one.quantiles) == len(LEVELS) for one in trained.quality)
    save_predictors(tmp_path, trained.predictors)
    loaded = load_predictors(tmp_path)
    assert loaded.meta["model"] == "tiny"
    assert json.loads(json.dumps(loaded.meta["curve"])) == trained.curve
    method = methods.create("atskv", predictor=str(tmp_path), init_tokens=1, recent_tokens=2)
    ids = list(texts(1, seed=3)[0].context)
    seen: list[Tensor] = []
    inner = type(method).relevance

    def relevance(*given: object) -> tuple[Tensor, Tensor, Tensor]:
        found = inner(method, *given)  # type: ignore[arg-type]
        seen.append(found[0])
        return found

    object.__setattr__(method, "relevance", relevance)
    context = model.prefill(ids, method=method)
    assert 0 < context.kept_share() <= 1
    wanted = predict_layers(model, loaded.layers, ids)
    for found, expected in zip(seen, wanted, strict=True):
        torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-3)


def predict_layers(
    model: object, layers: tuple[RelevancePredictor, ...], ids: list[int]
) -> list[Tensor]:
    found: list[Tensor] = []

    def visit(layer: Observed) -> None:
        # the whole prompt is the context here: what its last token gives belongs to it
        assert layer.column_sums is not None
        found.append(predict(layers[layer.layer], layer, layer.column_sums))

    visit_layers(model, Text(tuple(ids[:-1]), tuple(ids[-1:])), visit)  # type: ignore[arg-type]
    return found


def test_the_same_seed_gives_the_same_predictors() -> None:
    model = small_model()
    settings = TrainingSettings(epochs=1, width=4, feature_dim=16)
    one, other = (train(model, texts(2), (), settings).predictors for _ in range(2))
    for left, right in zip(one.layers, other.layers, strict=True):
        assert torch.equal(left.inner.weight, right.inner.weight)
    assert train(model, texts(2), (), settings).curve[0]["held_out"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning rate 0.0 must be above 0"),
        ({"batch_tokens": -1}, "batch tokens -1"),
        ({"label": "future"}, "unknown label 'future'; use later or received"),
        ({"scale": "log"}, "unknown scale 'log'; use rank or max"),
        ({"weight": "rank"}, "unknown weight 'rank'; use mass or none"),
        ({"features": ("position",)}, "unknown features position; use some of hidden"),
        ({"features": ()}, r"unknown features \(none\)"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingSettings(**options)


def test_training_without_texts_is_refused() -> None:
    with pytest.raises(UserError, match="at least one text"):
        train(small_model(), [])
