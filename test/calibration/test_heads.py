"""Which heads matter: measured loss curves, and budgets from them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from catekv import methods
from catekv.calibration.heads.comparison import (
    RANDOM,
    columns_at_equal_bytes,
    compare_heads,
)
from catekv.calibration.heads.curves import (
    LOSSES,
    SHARES,
    CurveSettings,
    measure_curves,
    selector_of,
)
from catekv.calibration.heads.gradients import output_gradients
from catekv.calibration.heads.head_scores import HeadScores
from catekv.calibration.heads.layer_errors import layer_errors
from catekv.calibration.relevance.reading import Text
from catekv.commands import cli
from catekv.errors import UserError
from catekv.evaluation.columns.specification import parse_methods
from catekv.kernels.logits import LogitForm
from catekv.methods import ModelShape, Observed, top_mask
from catekv.methods.formulas.water_filling import Segments
from catekv.model import CateKVModel

CONTEXT, LATER = 20, 5
SELECTOR = methods.create("snapkv", window=4, kernel=3)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed(form: LogitForm) -> Observed:
    tokens = CONTEXT + LATER
    queries, keys = 2 * random(1, 4, 4 + LATER, 8, seed=1), random(1, 2, tokens, 8, seed=2)
    return Observed(
        queries, keys, random(1, 2, tokens, 8, seed=3), 8**-0.5, form=form,
        hidden_states=random(1, tokens, 12, seed=4), output_projection=random(4, 8, 12, seed=5),
    )  # fmt: skip


def masked_output(layer: Observed, keep: Tensor) -> Tensor:
    """The layer's output at the later queries, where heads keep some tokens [kv_heads, tokens]."""
    tokens = CONTEXT + LATER
    logits = layer.queries[0, :, -LATER:] @ layer.keys[0].repeat_interleave(2, dim=0).mT
    logits = layer.form.cap_(logits * layer.scaling)
    hidden = torch.arange(tokens) > torch.arange(CONTEXT, tokens)[:, None]
    hidden = hidden[None] | ~keep.repeat_interleave(2, dim=0)[:, None]
    weights = logits.masked_fill(hidden, -torch.inf).exp()
    sinks = 0.0 if layer.form.sinks is None else layer.form.sinks.exp()[:, None, None]
    weights = weights / (weights.sum(dim=-1, keepdim=True) + sinks)
    heads = weights @ layer.values[0].repeat_interleave(2, dim=0)
    assert layer.output_projection is not None
    return torch.einsum("hqd,hdo->qo", heads, layer.output_projection)


def test_a_head_that_looks_at_one_early_token_loses_a_finite_output_without_it() -> None:
    layer = observed(LogitForm())
    layer.queries[..., 0], layer.keys[..., 0] = 60.0, 0.0
    layer.keys[:, :, 3, 0] = 2.0
    found = layer_errors(layer, CONTEXT, SELECTOR, (0, 1))
    # the others have less than float32 tells from 1 - 1, and the output is still a mean of values
    assert found.errors[:, 0].min() > 0.01
    assert found.errors[:, 0].max() < 100


@pytest.mark.parametrize("form", [LogitForm(), LogitForm(2.0, random(4, seed=6))], ids=str)
def test_a_head_loses_what_masking_its_tokens_changes_of_the_output(form: LogitForm) -> None:
    layer, shares = observed(form), (0, 0.25, 1)
    found = layer_errors(layer, CONTEXT, SELECTOR, shares)
    scores = SELECTOR.token_scores(
        replace(layer, queries=layer.queries[:, :, :4], keys=layer.keys[:, :, :CONTEXT])
    )
    whole = masked_output(layer, torch.ones(2, CONTEXT + LATER, dtype=torch.bool))
    for head, (place, share) in itertools.product(range(2), enumerate(shares)):
        keep = torch.ones(2, CONTEXT + LATER, dtype=torch.bool)
        keep[head, :16] = top_mask(scores[0, head], torch.tensor(round(share * 16)))
        error = (masked_output(layer, keep) - whole).square().sum() / whole.square().sum()
        assert float(found.errors[head, place]) == pytest.approx(float(error), abs=1e-5)
    assert not found.errors[:, -1].any()
    assert layer.hidden_states is not None
    hidden = layer.hidden_states[0, -LATER:].square().sum()
    assert found.weight == pytest.approx(float(whole.square().sum() / hidden), rel=1e-4)


def test_entries_go_where_the_summed_loss_falls_most() -> None:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    # the third curve is not convex: its hull goes from the first to the fourth point
    curves = [[8.0, 4.0, 2.0, 1.0, 0.0], [3.0, 1.0, 1.0, 1.0, 0.0], [5.0, 4.9, 4.9, 0.0, 0.0]]
    hulls = [curves[0], [3.0, 1.0, 2 / 3, 1 / 3, 0.0], [5.0, 10 / 3, 5 / 3, 0.0, 0.0]]
    segments = Segments.of(shares, [curves])
    for total in range(13):
        found = segments.fill(total, 4)[0].tolist()
        best = min(
            sum(hull[count] for hull, count in zip(hulls, counts, strict=True))
            for counts in itertools.product(range(5), repeat=3)
            if sum(counts) == total
        )
        assert sum(found) == total
        assert sum(h[c] for h, c in zip(hulls, found, strict=True)) == pytest.approx(best)
    assert segments.fill(6, 4, least=2).tolist() == [[2, 2, 2]]
    alike = Segments.of((0.0, 1.0), [[[1.0, 0.0]] * 3])
    assert alike.fill(7, 100).tolist() == [[3, 2, 2]]


@pytest.mark.parametrize("loss", LOSSES)
def test_curves_are_measured_saved_and_used(loss: str, tmp_path: Path) -> None:
    model = CateKVModel(tiny_model("gemma3"))
    ids = torch.randint(5, 60, (3, 70), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [Text(tuple(row[:60]), tuple(row[60:])) for row in ids]
    settings = CurveSettings(selector="snapkv:window=4,kernel=3", loss=loss)
    path = measure_curves(model, texts, settings).save(tmp_path / "curves.npz")
    loaded = HeadScores.load(path)
    losses = loaded.arrays["losses"]
    assert losses.shape == (3, 4, len(SHARES))
    assert losses[1, :, 0].min() > 0
    # layers with sliding windows are not compressed
    assert not losses[[0, 2]].any()
    bounds = loaded.intervals()
    assert bounds is not None
    assert (bounds[0] <= loaded.scores).all()
    assert loaded.votes(0.25).sum() == 3 * 3
    method = methods.create("curvekv", curves=path, keep=0.5, window=4)
    assert int(method.total_kept(60, model.shape)) == 60 * 12 // 2
    context = model.prefill(ids[0][:60], method=method)
    assert context.kept_share() < 1
    other = CateKVModel(tiny_model("gemma3", intermediate_size=64))
    with pytest.raises(UserError, match="made with a model of configuration"):
        other.prefill(ids[0], method=method)
    with pytest.raises(UserError, match="3 layers x 4 KV heads but the model has 3 layers x 2"):
        method.validate(ModelShape(3, 4, 2, 8))


def test_the_gradient_foretells_what_a_small_change_of_a_head_does_to_the_loss() -> None:
    model = CateKVModel(tiny_model("llama")).model.double()
    wrapped = CateKVModel(model)
    ids = torch.randint(5, 60, (1, 30), generator=torch.Generator().manual_seed(0))
    text = Text(tuple(ids[0, :24].tolist()), tuple(ids[0, 24:].tolist()))
    gradient = output_gradients(wrapped, text)[1][:, 3].double()
    step = 1e-2 * random(6, 8, seed=1).double()

    def loss(change: Tensor) -> float:
        def add(module: torch.nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            heads = arguments[0].clone()
            heads[0, -6:, 3 * 8 : 4 * 8] += change
            return (heads,)

        hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(add)
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits[0, 23:-1]
        hook.remove()
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 24:], reduction="sum"))

    expected = float((gradient * step).sum())
    assert loss(step) - loss(-step) == pytest.approx(2 * expected, rel=1e-2)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("selector", ["h2o", "expected_attention", "streaming_llm"])
def test_selectors_that_see_later_tokens_or_nothing_are_refused(selector: str) -> None:
    with pytest.raises(UserError, match="snapkv"):
        selector_of(selector)


def test_scores_that_are_alike_or_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="layer 0 head 1 is no finite number"):
        HeadScores(np.array([[0.5, np.nan]]), {})
    alike = HeadScores(np.full((2, 2), 0.5), {})
    with pytest.raises(UserError, match=r"all scores are 0.5, so that no share of 0.5"):
        alike.mask(0.5)
    assert alike.mask(1.0).ratio == 1
    assert alike.budgets(10, 2).tolist() == [[10, 10], [10, 10]]


def test_estimates_are_compared_with_as_many_full_heads_and_with_random_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = np.arange(10.0).reshape(2, 5)
    first = HeadScores(np.stack([scores, scores[::-1]]), {"kind": "a", "seconds": 3.2})
    found = compare_heads({"a": first, "b": HeadScores(-scores, {"kind": "b"})}, 0.3)
    assert [row.name for row in found.rows] == ["a", "b", *RANDOM]
    a, b, *_ = found.rows
    assert a.full_heads == b.full_heads == 3
    # the mean of both samples is the same in both layers, and falls from head 4 to head 0
    assert a.votes == pytest.approx((1 + 1 + 1) / 6)
    assert a.overlaps["b"] == 0
    assert a.correlations["a"] == pytest.approx(1)
    assert -1 < a.correlations["b"] < 0
    path = first.save(tmp_path / "a.npz")
    other = HeadScores(-scores, {"kind": "b"}).save(tmp_path / "b.npz")
    words = [
        "compare",
        f"a={path}",
        str(other),
        "--ratio",
        "0.3",
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.main(["heads", *words]) == 0
    printed = capsys.readouterr().out
    assert "catekv evaluate --methods" in printed
    masked = parse_methods([str(tmp_path / "out" / "methods.json")])[1:]
    assert [column.options["mask"] for column in masked] == ["a", masked[1].label, *RANDOM]
    folders = [tmp_path / "out" / "masks" / column.label for column in masked]
    made = [methods.create("catekv", head_mask=one, budget=128) for one in folders]
    assert len({one.total_kept(1024, ModelShape(2, 10, 5, 8)) for one in made}) == 1
    with pytest.raises(UserError, match="compare heads of one model"):
        compare_heads({"a": first, "c": HeadScores(scores.T, {})}, 0.3)


def test_budgets_by_curves_have_no_size_of_their_own_beside_masks(tmp_path: Path) -> None:
    scores = np.arange(10.0).reshape(2, 5)
    found = compare_heads(
        {"a": HeadScores(scores, {"kind": "loss_curves"}), "b": HeadScores(-scores, {})}, 0.3
    )
    files = {"a": tmp_path / "a.npz", "b": tmp_path / "b.npz"}
    columns, _ = columns_at_equal_bytes(found, files, tmp_path, 16)
    (curves,) = [column for column in columns if column["name"] == "curvekv"]
    assert curves == {"label": "a-budgets", "name": "curvekv", "curves": str(files["a"])}
