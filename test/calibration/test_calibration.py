"""Observation, coefficient of variation and votes against the reference numbers and properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from catekv import calibration
from catekv.calibration import CVConfig, observation
from catekv.calibration.head_masks.cv_files import read_cv, write_cv
from catekv.errors import UserError
from catekv.methods import head_votes
from catekv.methods.formulas.scoring import chunk_scores, window_attention
from catekv.methods.head_mask import HeadMask, load_statistics, save_statistics
from catekv.methods.prompt_layout import ceil_count, floor_count, prompt_layout

CONSISTENT = [[0.44, 0.44] + [0.02] * 6] * 4


def config_of(inputs: dict) -> CVConfig:
    return CVConfig(
        k=inputs["k"], alpha=inputs["alpha"], chunk_size=inputs["chunk"], **inputs["options"]
    )


def test_layout_golden(golden) -> None:
    for case in golden("catekv", "layout"):
        given = case["inputs"]
        layout = prompt_layout(
            given["n"], given["chunk"], given["init"], given["recent"], given["guard"]
        )
        assert layout.chunk_end == case["expected"]["chunk_end"]
        assert layout.middle_start == case["expected"]["mid_start"]
        assert layout.middle_end == case["expected"]["mid_end"]
        assert layout.chunks == case["expected"]["middle_chunks"]
        assert layout.tail == case["expected"]["tail"]


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 300, 352, 359, 360, 361])
def test_layout_of_short_prompts_stays_inside_the_prompt(tokens: int) -> None:
    layout = prompt_layout(tokens)
    assert 0 <= layout.middle_start <= layout.middle_end <= tokens
    assert layout.chunks == (1 if tokens >= 360 else 0)


def test_counts_do_not_depend_on_binary_fractions() -> None:
    assert ceil_count(0.07 * 100) == 7
    assert floor_count(0.29 * 100) == 29
    assert ceil_count(0.4 * 256) == 103


def test_cv_from_attention_golden(golden) -> None:
    for case in golden("catekv", "cv_from_attention"):
        found = calibration.observe_attention(
            torch.tensor(case["inputs"]["attention"]), config_of(case["inputs"])
        )
        assert found.hits.tolist() == case["expected"]["hits"], case["id"]
        assert found.threshold.item() == pytest.approx(case["expected"]["threshold"], abs=1e-5)
        assert found.cv.item() == pytest.approx(case["expected"]["cv"], abs=1e-5)


def test_cv_closed_form_golden(golden) -> None:
    for case in golden("catekv", "cv_closed_form"):
        hits = torch.zeros(case["inputs"]["chunks"])
        hits[: case["inputs"]["hot_chunks"]] = 64
        for std in ("population", "sample"):
            value = observation.coefficient_of_variation(hits, std).item()
            assert value == pytest.approx(case["expected"][std], rel=1e-5)


def test_chunk_score_golden(golden) -> None:
    for case in golden("catekv", "chunk_score"):
        attention = torch.tensor(case["inputs"]["attention"])
        for rule in ("sum_of_chunk_max", "max_of_chunk_sum"):
            scores = chunk_scores(attention, case["inputs"]["chunk"], rule)
            assert scores.tolist() == pytest.approx(case["expected"][rule])
            order = scores.sort(descending=True, stable=True).indices
            assert order.tolist() == case["expected"][f"best_first_{rule}"]


def test_per_sample_mask_golden(golden) -> None:
    for case in golden("catekv", "per_sample_mask"):
        cvs, ratio = torch.tensor(case["inputs"]["cv"]), case["inputs"]["r"]
        assert head_votes.gamma(cvs, ratio).item() == pytest.approx(case["expected"]["gamma"])
        assert head_votes.sample_mask(cvs, ratio).int().tolist() == case["expected"]["mask"]


def test_static_vote_golden(golden) -> None:
    for case in golden("catekv", "static_vote"):
        cvs, ratio = torch.tensor(case["inputs"]["samples"]), case["inputs"]["r"]
        expected = case["expected"]
        assert head_votes.count_votes(cvs, ratio).tolist() == expected["votes"]
        exact = calibration.vote(cvs, ratio)
        assert exact.adaptive.int().tolist() == expected["mask_exact"]
        assert int(exact.adaptive.sum()) == expected["adaptive_heads"]
        ties = calibration.vote(cvs, ratio, vote_count="keep_ties")
        assert ties.adaptive.int().tolist() == expected["mask_keep_ties"]
        for text, mask in expected["mask_cumulative_keep_ties"].items():
            found = calibration.vote(
                cvs, float(text), "cumulative", "keep_ties", ratios=case["inputs"]["ratios"]
            )
            assert found.adaptive.int().tolist() == mask


def pipeline_config(params: dict, options: dict) -> CVConfig:
    options = {name: value for name, value in options.items() if name != "retention_score"}
    return CVConfig(
        k=params["k"],
        alpha=params["alpha"],
        chunk_size=params["chunk"],
        window=params["n_last"],
        init_tokens=params["init"],
        recent_tokens=params["recent"],
        guard_tokens=params["guard"],
        **options,
    )


def test_pipeline_golden_observation(golden) -> None:
    for case in golden("catekv", "pipeline"):
        params = case["inputs"]["params"]
        config = pipeline_config(params, case["inputs"]["options"])
        cvs = []
        for layer, expected_hits in enumerate(case["expected"]["hits"]):
            queries = torch.tensor(case["inputs"]["q_window"][layer])[None]
            keys = torch.tensor(case["inputs"]["k_all"][layer])[None]
            found = calibration.observe(queries, keys, config)
            assert found.hits[0].tolist() == expected_hits
            expected = torch.tensor(case["expected"]["threshold"][layer]).double()
            torch.testing.assert_close(found.threshold[0], expected, rtol=1e-5, atol=1e-5)
            expected = torch.tensor(case["expected"]["cv"][layer]).double()
            torch.testing.assert_close(found.cv[0], expected, rtol=1e-5, atol=1e-5)
            cvs.append(found.cv[0])
        mask = head_votes.sample_mask(torch.stack(cvs), params["r"])
        assert mask.int().tolist() == case["expected"]["mask"]


def test_ties_with_the_top_value_are_hits_at_alpha_one() -> None:
    attention = torch.tensor(CONSISTENT)
    tied = calibration.observe_attention(attention, CVConfig(k=0.8, chunk_size=2))
    assert tied.hits.tolist() == [4, 0, 0, 0]
    assert tied.threshold.item() == pytest.approx(0.44)
    strict = calibration.observe_attention(
        attention, CVConfig(k=0.8, chunk_size=2, comparison="gt")
    )
    assert strict.cv.item() == 0.0


def test_many_low_values_meet_the_floor_of_the_span_threshold() -> None:
    attention = torch.zeros(4, 80)
    found = calibration.observe_attention(attention, CVConfig(k=0.5))
    assert found.threshold.item() == pytest.approx(1e-9)
    assert found.hits.sum() == 0
    assert found.cv.item() == 0.0


@pytest.mark.parametrize("points", [[0.0, 0.25, 0.5, 1.0], [0.002, 0.998], [0.016, 0.984, 0.99]])
def test_quantiles_equal_the_library(points: list[float]) -> None:
    values = torch.rand(3, 1001, generator=torch.Generator().manual_seed(1))
    for point, found in zip(points, observation.quantiles(values, points), strict=True):
        torch.testing.assert_close(found, values.double().quantile(point, dim=-1))


def test_quantiles_of_tied_values_are_exact() -> None:
    values = torch.full((1, 1000), 0.1)
    values[0, :300] = 0.7
    low, high = observation.quantiles(values, [0.1, 0.9])
    assert low.float().item() == values[0, -1].item()
    assert high.float().item() == values[0, 0].item()


def test_quantile_beyond_the_library_limit() -> None:
    count = 2**24 + 5
    values = torch.zeros(1, count)
    values[0, :1000] = torch.arange(1000, 0, -1)
    (found,) = observation.quantiles(values, [1 - 10 / (count - 1)])
    assert found.item() == pytest.approx(990.0, abs=1e-6)


def test_many_configurations_equal_single_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(2, 4, 20, 8, generator=generator)
    keys = torch.randn(2, 2, 200, 8, generator=generator)
    base = CVConfig(window=6, init_tokens=8, recent_tokens=16, guard_tokens=8, chunk_size=4)
    configs = [
        base.with_values(k=k, alpha=alpha, hit_unit=unit, threshold=rule)
        for k in (0.9, 0.984, 0.998)
        for alpha in (1.0, 0.8)
        for unit, rule in (("chunk", "span"), ("token", "quantile"))
    ]
    many = observation.observe_many(queries, keys, configs)
    for config, found in zip(configs, many, strict=True):
        single = calibration.observe(queries, keys, config)
        assert torch.equal(found.hits, single.hits)
        assert torch.equal(found.cv, single.cv)
        assert torch.equal(found.threshold, single.threshold)


def test_padding_does_not_change_a_row() -> None:
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(2, 4, 90, 8, generator=generator)
    keys = torch.randn(2, 2, 90, 8, generator=generator)
    valid = torch.ones(2, 90, dtype=torch.bool)
    valid[1, :17] = False
    config = CVConfig(
        k=0.9, window=6, init_tokens=8, recent_tokens=16, guard_tokens=8, chunk_size=4
    )
    padded = calibration.observe(queries, keys, config, valid=valid)
    alone = calibration.observe(queries[1:, :, 17:], keys[1:, :, 17:], config)
    assert torch.equal(padded.cv[1], alone.cv[0])
    units = alone.hits.shape[-1]
    assert torch.equal(padded.hits[1, :, :units], alone.hits[0])
    assert padded.hits[1, :, units:].sum() == 0


def test_window_attention_is_causal_where_it_reaches_into_the_window() -> None:
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(1, 4, 6, 8, generator=generator)
    keys = torch.randn(1, 2, 30, 8, generator=generator)
    ((rows, found),) = window_attention(queries, keys, 8**-0.5)
    assert rows == slice(0, 2)
    logits = queries.view(1, 2, 2, 6, 8) @ keys[:, :, None].transpose(-1, -2) * 8**-0.5
    causal = torch.ones(6, 30, dtype=torch.bool).tril(24)
    expected = logits.masked_fill(~causal, -torch.inf).softmax(-1).mean(dim=2)[0]
    torch.testing.assert_close(found, expected)


def test_blocks_give_the_same_attention_as_one_piece() -> None:
    generator = torch.Generator().manual_seed(6)
    queries = torch.randn(2, 8, 6, 8, generator=generator)
    keys = torch.randn(2, 4, 50, 8, generator=generator)
    pieces = list(window_attention(queries, keys, 0.3, 4, 40))
    assert [rows for rows, _ in pieces] == [slice(0, 4), slice(4, 8)]
    whole = torch.cat([attention for _, attention in pieces])
    blocks = list(window_attention(queries, keys, 0.3, 4, 40, block_bytes=1))
    assert [rows for rows, _ in blocks] == [slice(i, i + 1) for i in range(8)]
    torch.testing.assert_close(torch.cat([a for _, a in blocks]), whole)


def test_paper_variant_takes_its_recent_tokens_from_the_budget() -> None:
    assert CVConfig().recent_tokens == 256
    assert CVConfig(variant="paper").recent_tokens == 16
    assert CVConfig(variant="paper", budget=512).recent_tokens == 4
    assert CVConfig(variant="paper", recent_tokens=256).recent_tokens == 256
    paper = CVConfig(variant="paper", hit_unit="chunk")
    assert (paper.hit_unit, paper.threshold, paper.std) == ("chunk", "quantile", "population")


@pytest.mark.parametrize(
    "options",
    [
        {"k": 1.0},
        {"k": 0.0},
        {"alpha": 0.0},
        {"alpha": 1.1},
        {"chunk_size": 0},
        {"window": 0},
        {"init_tokens": -1},
        {"variant": "other"},
        {"hit_unit": "page"},
        {"recent_tokens": "b/64"},
    ],
)
def test_configurations_outside_their_range_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        CVConfig(**options)


def test_short_prompts_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="no middle to observe"):
        calibration.observe(torch.zeros(1, 2, 64, 4), torch.zeros(1, 1, 300, 4), CVConfig())


def test_vote_has_exactly_the_asked_number_of_heads_and_nests_on_one_sample() -> None:
    cvs = torch.rand(7, 4, 4, generator=torch.Generator().manual_seed(2))
    for ratio in (0.01, 0.07, 0.29, 0.4, 0.57, 1.0):
        mask = calibration.vote(cvs, ratio)
        assert int(mask.adaptive.sum()) == ceil_count(ratio * 16)
        assert mask.nominal_ratio == ratio
    smaller, larger = (calibration.vote(cvs[:1], ratio).adaptive for ratio in (0.25, 0.5))
    assert bool((larger | ~smaller).all())


def test_equal_cvs_fall_to_the_lower_flat_index() -> None:
    mask = calibration.vote(torch.ones(3, 2, 4), 0.25)
    assert mask == HeadMask(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))


def test_gamma_rules_differ_only_at_gamma() -> None:
    cvs = torch.tensor([[1.0, 2.0, 3.0]])
    assert head_votes.sample_mask(cvs, 0.5, "le").tolist() == [[True, True, False]]
    assert head_votes.sample_mask(cvs, 0.5, "lt").tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("cvs", "options"),
    [
        (torch.rand(3, 4), {}),
        (torch.full((1, 2, 2), torch.nan), {}),
        (torch.rand(1, 2, 2), {"ratio": 0.0}),
        (torch.rand(1, 2, 2), {"static_vote": "other"}),
        (torch.rand(1, 2, 2), {"vote_count": "other"}),
    ],
)
def test_bad_votes_are_refused(cvs: torch.Tensor, options: dict) -> None:
    with pytest.raises(UserError):
        calibration.vote(cvs, **{"ratio": 0.5, **options})


def test_layers_without_statistics_take_no_share_of_the_adaptive_heads() -> None:
    cvs = torch.full((3, 4, 2), torch.nan, dtype=torch.float64)
    typed = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cvs[:, [1, 3]] = typed
    for count in ("exact", "keep_ties"):
        mask = calibration.vote(cvs, 0.5, vote_count=count)
        alone = calibration.vote(typed, 0.5, vote_count=count)
        assert torch.equal(mask.adaptive[[1, 3]], alone.adaptive)
        assert not bool(mask.adaptive[[0, 2]].any())
    with pytest.raises(UserError, match="not finite"):
        calibration.vote(cvs[:, [0, 2]], 0.5)


def test_statistics_with_layers_without_heads_come_back(tmp_path: Path) -> None:
    cvs = torch.full((2, 3, 2), torch.nan, dtype=torch.float64)
    cvs[:, 1] = torch.tensor([0.5, 0.25])
    path = save_statistics(tmp_path, cvs)
    assert torch.equal(load_statistics(path)[0].nan_to_num(-1.0), cvs.nan_to_num(-1.0))
    adaptive = HeadMask.load(tmp_path, ratio=0.5).adaptive
    assert adaptive.tolist() == [[False, False], [False, True], [False, False]]
    write_cv(tmp_path / "own.csv", cvs[0])
    assert torch.equal(read_cv(tmp_path / "own.csv").nan_to_num(-1.0), cvs[0].nan_to_num(-1.0))
