"""Features, predictors, control rules and hashing of ATSKV, piece by piece.

Every worked example of the specification stands here as literals; the reference files hold the same
and more.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.atskv import control as control
from catekv.methods.atskv.files import PredictorSet, load_predictors, save_predictors
from catekv.methods.atskv.lsh import LshIndex, cosine, random_projection, sign_codes
from catekv.methods.atskv.relevance import (
    PredictorConfig,
    RelevancePredictor,
    attention_feature,
    attention_label,
    handcrafted_features,
    queries_that_see,
    untrained_predictor,
)

RELEVANCE = [0.05, 0.90, 0.40, 0.75, 0.20, 0.60, 0.10, 0.85, 0.30, 0.50]
ATTENTION = [
    [[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]],
    [[1, 0, 0], [0.9, 0.1, 0], [0.6, 0.1, 0.3]],
]
SMALL = PredictorConfig(hidden_size=12, query_heads=4, width=5, feature_dim=16)


def positions(mask: Tensor) -> list[int]:
    return mask.nonzero().squeeze(-1).tolist()


def codes(vectors: Any, projection: Any) -> list[str]:
    numbers = sign_codes(torch.tensor(vectors).float(), torch.tensor(projection).float())
    return [format(int(number), f"0{len(projection)}b") for number in numbers]


def check_quantile_level(given: dict, expected: dict, tolerance: float) -> None:
    found = [control.quantile_level(p, given["q_min"], given["q_max"]) for p in given["pressure"]]
    assert found == pytest.approx(expected["q"], abs=tolerance)


def check_quantile_mask(given: dict, expected: dict, tolerance: float) -> None:
    relevance = torch.tensor(given["relevance"])
    found = control.threshold(relevance, given["q"], given["beta"])
    assert float(found) == pytest.approx(expected["threshold"], abs=tolerance)
    mask = control.relevance_mask(relevance, given["q"], given["beta"])
    assert positions(mask) == expected["kept"]


def check_momentum(given: dict, expected: dict, tolerance: float) -> None:
    value = torch.tensor([given["start"]], dtype=torch.float32)
    soft = []
    for binary in given["binary"]:
        value = control.momentum(value, torch.tensor([bool(binary)]), given["lambda"])
        soft.append(float(value))
    assert soft == pytest.approx(expected["soft"], abs=tolerance)
    assert [number > 0.5 for number in soft] == expected["kept"]


def check_smoothed_quantile(given: dict, expected: dict, tolerance: float) -> None:
    level, found = given["start"], []
    for target in given["targets"]:
        level = control.smoothed_level(level, target)
        found.append(level)
    assert found == pytest.approx(expected["q"], abs=tolerance)


def check_mlp_parameters(given: dict, expected: dict, tolerance: float) -> None:
    config = PredictorConfig(
        given["hidden"], given["heads"], "mlp", given["d_r"], given["features"]
    )
    parameters = RelevancePredictor(config).parameters()
    assert sum(parameter.numel() for parameter in parameters) == expected["parameters"]


def check_attention_feature(given: dict, expected: dict, tolerance: float) -> None:
    attention = torch.tensor(given["attention"])[None]
    sums = attention.sum(dim=2)
    tokens = sums.shape[-1]

    def near(found: Tensor, wanted: Any) -> None:
        torch.testing.assert_close(found, torch.tensor(wanted), atol=tolerance, rtol=tolerance)

    near(attention_feature(sums, tokens)[0].T, expected["per_head"])
    near(attention_feature(sums, tokens, "scalar")[0, :, 0], expected["scalar"])
    causal = attention_feature(sums, queries_that_see(tokens), "scalar")
    near(causal[0, :, 0], expected["causal_normalised"])
    near(attention_label(sums)[0], expected["label"])


def check_handcrafted(given: dict, expected: dict, tolerance: float) -> None:
    norms = torch.zeros(1, given["length"])
    norms[0, 0], norms[0, given["position"]] = given["max_norm"], given["norm"]
    ids = torch.full((1, given["length"]), given["token_id"])
    features = handcrafted_features(norms, given["layer"], given["feature_dim"], token_ids=ids)
    row = features[0, given["position"]]
    found = {str(slot): float(row[slot]) for slot in positions(row != 0)}
    assert found == pytest.approx(expected["nonzero"], abs=tolerance)


def check_lsh_retrieve(given: dict, expected: dict, tolerance: float) -> None:
    names = list(given["passive"])
    keys = torch.tensor([given["passive"][name] for name in names]).float()
    projection = torch.tensor(given["projection"]).float()
    query = torch.tensor([given["query"]]).float()
    assert codes(query.tolist(), given["projection"]) == [expected["query_code"]]
    assert (
        dict(zip(names, codes(keys.tolist(), given["projection"]), strict=True))
        == (expected["codes"])
    )
    index = LshIndex.build(keys[None], sign_codes(keys, projection)[None])
    found, cosines = index.retrieve(
        query[None], sign_codes(query, projection)[None], given["top_k"]
    )
    count = len(expected["retrieved"])
    assert [int(names[entry]) for entry in found[0, :count]] == expected["retrieved"]
    assert bool((found[0, count:] == -1).all())
    assert cosines[0, :count].tolist() == pytest.approx(expected["cosines"], abs=tolerance)


def check_migrate(given: dict, expected: dict, tolerance: float) -> None:
    scores = {**given["active"], **given["passive"]}
    relevance = torch.tensor(list(scores.values()))
    active = torch.tensor([name in given["active"] for name in scores])
    found = control.migrate(relevance, active, given["demote_below"], given["promote_above"])
    names = [int(name) for name in scores]
    assert [names[i] for i in positions(found[0])] == expected["demote"]
    assert [names[i] for i in positions(found[1])] == expected["promote"]


def check_reward(given: dict, expected: dict, tolerance: float) -> None:
    found = control.reward(given["performance"], given["memory"], given["alpha"])
    assert found == pytest.approx(expected["reward"], abs=tolerance)


def _relevance(
    weight: list, bias: list, x: list, outer: tuple[list, float] | None = None
) -> list[float]:
    """A predictor with given weights, by way of its layers (its inputs are wider than these)."""
    kind = "linear" if outer is None else "mlp"
    predictor = RelevancePredictor(PredictorConfig(1, 1, kind, len(weight)))
    inner = torch.nn.Linear(len(weight[0]), len(weight))
    inner.weight.data = torch.tensor(weight).float()
    inner.bias.data = torch.tensor(bias).float()
    predictor.inner = inner
    if outer is not None:
        assert predictor.outer is not None
        predictor.outer.weight.data = torch.tensor([outer[0]]).float()
        predictor.outer.bias.data = torch.tensor([outer[1]]).float()
    return predictor(torch.tensor(x).float()[None])[0].tolist()


def check_linear_relevance(given: dict, expected: dict, tolerance: float) -> None:
    found = _relevance([given["w"]], [given["b"]], given["x"])
    assert found == pytest.approx(expected["relevance"], abs=tolerance)


def check_mlp_relevance(given: dict, expected: dict, tolerance: float) -> None:
    found = _relevance(given["W1"], given["b1"], given["x"], (given["W2"], given["b2"]))
    assert found == pytest.approx(expected["relevance"], abs=tolerance)


def check_simple_controller(given: dict, expected: dict, tolerance: float) -> None:
    found = control.controlled_ratios(
        given["start"], given["steps"], given["target"], given["min"], given["max"]
    )
    assert found == pytest.approx(expected["ratios"], abs=tolerance)


def check_memory_reduction(given: dict, expected: dict, tolerance: float) -> None:
    found = control.memory_reduction(given["method_bytes"], given["full_bytes"])
    assert found == pytest.approx(expected["reduction_percent"], abs=tolerance)


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}

#: (kind, inputs, expected), the specification's worked examples
EXAMPLES: list[tuple[str, dict, dict]] = [
    (
        "quantile_level",
        {"q_min": 0.5, "q_max": 0.9, "pressure": [0, 0.5, 1, 1.25]},
        {"q": [0.5, 0.7, 0.9, 0.9]},
    ),
    (
        "quantile_mask",
        {"relevance": RELEVANCE, "q": 0.5, "beta": 1.0},
        {"threshold": 0.45, "kept": [1, 3, 5, 7, 9]},
    ),
    (
        "quantile_mask",
        {"relevance": RELEVANCE, "q": 0.7, "beta": 1.0},
        {"threshold": 0.645, "kept": [1, 3, 7]},
    ),
    (
        "quantile_mask",
        {"relevance": RELEVANCE, "q": 0.7, "beta": 0.8},
        {"threshold": 0.516, "kept": [1, 3, 5, 7]},
    ),
    (
        "momentum",
        {"lambda": 0.8, "start": 1, "binary": [0, 0, 0, 0]},
        {"soft": [0.8, 0.64, 0.512, 0.4096], "kept": [True, True, True, False]},
    ),
    (
        "smoothed_quantile",
        {"start": 0.3, "targets": [0.5, 0.5, 0.5]},
        {"q": [0.32, 0.338, 0.3542]},
    ),
    (
        "mlp_parameters",
        {"hidden": 4096, "heads": 32, "features": 64, "d_r": 32},
        {"parameters": 134_209},
    ),
    (
        "attention_feature",
        {"attention": ATTENTION},
        {
            "per_head": [[0.566667, 0.266667, 0.166667], [0.833333, 0.066667, 0.1]],
            "scalar": [0.7, 0.166667, 0.133333],
            "causal_normalised": [0.7, 0.25, 0.4],
            "label": [1, 0.238095, 0.190476],
        },
    ),
    (
        "handcrafted",
        {
            "feature_dim": 64,
            "position": 3,
            "length": 8,
            "token_id": 17,
            "norm": 0.7,
            "max_norm": 1.0,
            "layer": 5,
        },
        {"nonzero": {"16": 0.375, "18": 0.7, "19": 0.05}},
    ),
    (
        "lsh_retrieve",
        {
            "projection": [[1, 0], [0, 1], [1, 1], [1, -1]],
            "query": [1, -0.2],
            "passive": {"4": [2, -1], "9": [-1, 2]},
            "top_k": 5,
        },
        {
            "query_code": "1011",
            "codes": {"4": "1011", "9": "0110"},
            "retrieved": [4],
            "cosines": [2.2 / math.sqrt(1.04 * 5)],
        },
    ),
    (
        "migrate",
        {
            "active": {"0": 0.1, "1": 0.5, "2": 0.19, "3": 0.95, "4": 0.2},
            "passive": {"7": 0.85, "9": 0.8, "11": 0.3},
            "demote_below": 0.2,
            "promote_above": 0.8,
        },
        {"demote": [0, 2], "promote": [7]},
    ),
    ("reward", {"alpha": 0.7, "performance": 0.9, "memory": 0.2}, {"reward": 0.57}),
    (
        "linear_relevance",
        {"w": [0.5, -1.0, 2.0], "b": 0.1, "x": [[1, 0, 0], [0, 1, 0.5]]},
        {"relevance": [0.6456563, 0.5249792]},
    ),
    (
        "mlp_relevance",
        {
            "W1": [[1, -1], [0.5, 0.5]],
            "b1": [0, -0.25],
            "W2": [1, -2],
            "b2": 0.2,
            "x": [[1, 0], [0, 1]],
        },
        {"relevance": [0.6681878, 0.4255575]},
    ),
    (
        "simple_controller",
        {
            "start": 0.5,
            "min": 0.1,
            "max": 0.9,
            "target": 100,
            "steps": [[120, 0.97], [130, 0.97], [80, 0.9], [85, 0.99]],
        },
        {"ratios": [0.45, 0.405, 0.4455, 0.4455]},
    ),
    (
        "memory_reduction",
        {"full_bytes": 2048, "method_bytes": 512},
        {"reduction_percent": 75.0},
    ),
]


@pytest.mark.parametrize(("kind", "given", "expected"), EXAMPLES)
def test_worked_examples(kind: str, given: dict, expected: dict) -> None:
    CHECKS[kind](given, expected, 1e-6)


@pytest.mark.parametrize("kind", sorted(CHECKS))
def test_reference_numbers(kind: str, golden) -> None:
    for case in golden("atskv", kind):
        CHECKS[kind](case["inputs"], case["expected"], case["tolerance"]["abs"])


def test_every_kind_of_the_reference_is_checked(golden_folder: Path) -> None:
    kinds = json.loads((golden_folder / "atskv.json").read_text())["kinds"]
    assert set(CHECKS) == set(kinds)


def test_threshold_is_the_quantile_of_torch_for_each_row() -> None:
    relevance = torch.rand(3, 101, generator=torch.Generator().manual_seed(0))
    for level in (0.0, 0.31, 0.5, 0.9, 1.0):
        wanted = torch.quantile(relevance, level, dim=-1)
        torch.testing.assert_close(control.threshold(relevance, level), wanted)


def test_a_mask_that_is_made_binary_every_step_would_never_change() -> None:
    soft, binary = torch.ones(1), torch.ones(1)
    for _ in range(50):
        soft = control.momentum(soft, torch.zeros(1, dtype=torch.bool))
        binary = (control.momentum(binary, torch.zeros(1, dtype=torch.bool)) > 0.5).float()
    assert float(soft) < 1e-4
    assert float(binary) == 1.0


def test_the_controller_stays_within_its_limits() -> None:
    assert control.controlled_ratios(0.12, [(200, 1.0)] * 4, 100)[-1] == 0.1
    assert control.controlled_ratios(0.85, [(10, 0.5)] * 4, 100)[-1] == 0.9


def test_relevance_from_the_static_part_equals_the_whole_input() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 30, 12, generator=generator)
    sums = torch.rand(2, 4, 30, generator=generator)
    for kind in ("mlp", "linear"):
        for feature in ("vector", "scalar"):
            config = PredictorConfig(12, 4, kind, 5, 16, feature)
            predictor = untrained_predictor(config, seed=3, layer=2)
            parts = [
                hidden,
                attention_feature(sums, queries_that_see(30), feature),
                handcrafted_features(hidden.norm(dim=-1), 2, 16),
            ]
            static = predictor.static_part(hidden, 2)
            found = predictor.from_static(static, sums, queries_that_see(30))
            torch.testing.assert_close(found, predictor(torch.cat(parts, dim=-1)))
            assert found.shape == (2, 30)
            assert bool(((found > 0) & (found < 1)).all())


def test_the_static_part_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(1))
    predictor = untrained_predictor(SMALL, seed=0, layer=1)
    whole = predictor.static_part(hidden, 1)
    monkeypatch.setattr("catekv.methods.atskv.relevance.BLOCK_TOKENS", 7)
    torch.testing.assert_close(predictor.static_part(hidden, 1), whole)


def test_token_types_fill_the_first_quarter_and_small_ids_are_special() -> None:
    types = torch.rand(1, 6, 4)
    ids = torch.tensor([[0, 4, 5, 6, 7, 8]])
    features = handcrafted_features(torch.ones(1, 6), 0, 16, ids, types)
    assert torch.equal(features[..., :4], types)
    assert features[0, :, 5].tolist() == [1, 1, 0, 0, 0, 0]
    assert not bool(features[..., 8:].any())


def test_untrained_predictors_are_reproducible_and_differ_between_layers() -> None:
    state = torch.get_rng_state()
    first, again, other = (untrained_predictor(SMALL, 0, layer) for layer in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers moved"
    assert torch.equal(first.inner.weight, again.inner.weight)
    assert not torch.equal(first.inner.weight, other.inner.weight)


def test_another_model_is_refused_with_both_numbers() -> None:
    predictor = untrained_predictor(SMALL, 0, 0)
    with pytest.raises(UserError, match="hidden size of 12 but the model's is 8"):
        predictor.static_part(torch.zeros(1, 3, 8), 0)
    static = predictor.static_part(torch.ones(1, 3, 12), 0)
    with pytest.raises(UserError, match="4 query heads but the layer has 2"):
        predictor.from_static(static, torch.zeros(1, 2, 3), queries_that_see(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tree"}, "predictor: unknown kind 'tree'"),
        ({"attention_feature": "matrix"}, "unknown attention_feature"),
        ({"feature_dim": 18}, "feature_dim 18"),
        ({"width": 0}, "width 0"),
    ],
)
def test_bad_predictor_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictorConfig(**{"hidden_size": 4, "query_heads": 2, **change})


def test_predictors_come_back_from_disk(tmp_path: Path) -> None:
    layers = tuple(untrained_predictor(SMALL, 5, layer) for layer in range(3))
    saved = PredictorSet(layers, (0.5, 0.6, 0.7), (1.0, 0.9, 1.1), {"epochs": 5})
    save_predictors(tmp_path / "p", saved)
    loaded = load_predictors(tmp_path / "p")
    assert loaded.config == SMALL
    assert loaded.layer_quantiles == (0.5, 0.6, 0.7)
    assert loaded.layer_betas == (1.0, 0.9, 1.1)
    assert loaded.meta == {"epochs": 5}
    inputs = torch.randn(1, 4, SMALL.inputs)
    for before, after in zip(layers, loaded.layers, strict=True):
        assert torch.equal(before(inputs), after(inputs))


def test_the_format_on_disk_is_the_documented_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_predictors(tmp_path, PredictorSet((untrained_predictor(SMALL, 5, 0),)))
    description = json.loads((tmp_path / "predictor.json").read_text())
    assert description["format"] == 1
    assert description["layers"] == 1
    assert description["predictor"] == SMALL.to_dict()
    assert description["layer_quantiles"] is None
    tensors = load_file(tmp_path / "predictor.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "0.inner.weight": [5, 12 + 4 + 16],
        "0.inner.bias": [5],
        "0.outer.weight": [1, 5],
        "0.outer.bias": [1],
    }


def test_damaged_predictor_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no relevance predictors"):
        load_predictors(tmp_path)
    save_predictors(tmp_path, PredictorSet((untrained_predictor(SMALL, 5, 0),)))
    file = tmp_path / "predictor.json"
    content = json.loads(file.read_text())
    for change, message in [
        ({"format": 9}, "format 9, this version reads 1"),
        ({"layers": 2}, "damaged"),
        ({"predictor": {**SMALL.to_dict(), "width": 6}}, "damaged"),
        ({"layer_betas": [1.0, 2.0]}, "2 layer_betas for predictors of 1 layers"),
    ]:
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=message):
            load_predictors(tmp_path)


def test_codes_are_the_nearest_sign_pattern() -> None:
    projection = random_projection(4, 6, seed=1, layer=0)
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    signs = torch.where(vectors @ projection.T > 0, 1.0, -1.0)
    patterns = torch.tensor(
        [[1.0 if c >> b & 1 else -1.0 for b in (3, 2, 1, 0)] for c in range(16)]
    )
    nearest = (signs[:, None] - patterns).abs().sum(-1).argmin(-1)
    assert torch.equal(sign_codes(vectors, projection), nearest)


def test_projections_differ_between_layers_and_seeds_only() -> None:
    first = random_projection(16, 8, 0, 0)
    assert torch.equal(first, random_projection(16, 8, 0, 0))
    assert not torch.equal(first, random_projection(16, 8, 0, 1))
    assert not torch.equal(first, random_projection(16, 8, 1, 0))


def test_codes_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, projection = torch.randn(3, 50, 8), random_projection(16, 8, 0, 0)
    whole = sign_codes(vectors, projection)
    monkeypatch.setattr("catekv.methods.atskv.lsh.BLOCK", 7)
    assert torch.equal(sign_codes(vectors, projection), whole)


def test_zero_vectors_have_cosine_zero() -> None:
    assert cosine(torch.zeros(3), torch.ones(3)).item() == 0.0


@pytest.mark.parametrize("gathered", [1 << 24, 1])
def test_retrieval_equals_a_search_of_the_whole_bucket(
    gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catekv.methods.atskv.lsh.MAX_GATHERED", gathered)
    generator = torch.Generator().manual_seed(4)
    keys = torch.randn(3, 80, 6, generator=generator)
    keys[:, 40:50] = keys[:, 30:40]  # ties
    queries = torch.randn(3, 5, 6, generator=generator)
    projection = random_projection(3, 6, 0, 0)
    key_codes, query_codes = sign_codes(keys, projection), sign_codes(queries, projection)
    found, cosines = LshIndex.build(keys, key_codes).retrieve(queries, query_codes, 7)
    for row in range(3):
        same = query_codes[row][:, None] == key_codes[row]
        score = cosine(queries[row][:, None], keys[row]).masked_fill(~same, -2).amax(0)
        ranked = score.sort(descending=True, stable=True)
        wanted = [i for i, s in zip(ranked.indices.tolist(), ranked.values, strict=True) if s > -2]
        count = min(7, len(wanted))
        assert found[row, :count].tolist() == wanted[:count]
        torch.testing.assert_close(cosines[row, :count], ranked.values[:count])
        assert found[row, count:].tolist() == [-1] * (7 - count)


def test_an_empty_index_finds_nothing() -> None:
    index = LshIndex.build(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    found, cosines = index.retrieve(torch.ones(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64), 3)
    assert found.tolist() == [[-1] * 3] * 2
    assert not bool(cosines.any())
